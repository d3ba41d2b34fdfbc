"""What a preset says; see `presets/` for those that come along."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

__all__ = [
    "Devices",
    "Grpo",
    "Lora",
    "Policy",
    "Preparation",
    "Preset",
    "Prompts",
    "Recording",
    "Reward",
    "Saes",
]

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]


class Preparation(Struct, frozen=True, kw_only=True):
    """A function that makes policy, SAEs and prompts in the run directory, before training.

    Attributes:
        function: `MODULE:FUNCTION`, see `aegir_adapters.train.prepared.Prepare`.
        settings: what it is told; its own defaults hold where something is left out.
    """

    function: str
    settings: dict[str, int | float | str | bool] = field(default_factory=dict)


class Lora(Struct, frozen=True, kw_only=True):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on every linear layer but the head."""

    rank: Count = 64
    alpha: Count = 64


class Policy(Struct, frozen=True, kw_only=True):
    """The model that is trained.

    Attributes:
        model: local directory in the format of `save_pretrained`, or id on the Hugging Face Hub.
        revision: commit or tag on the hub.
        layers: decoder layers; the model's own count, where it is at hand, goes before this.
        parameters: their number; counted in the model's files where they are at hand.
        width: of the residual stream; the same.
        dtype: of the weights, and so of gradients and optimizer states.
        lora: train adapters instead of all weights.
    """

    model: str | None = None
    revision: str | None = None
    layers: Count | None = None
    parameters: Count | None = None
    width: Count | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    lora: Lora | None = None


class Devices(Struct, frozen=True, kw_only=True):
    """What it is trained on.

    Attributes:
        count: processes, one device each.
        kind: `accelerator` (CUDA and its like), or `cpu`.
        sharding: `none` for one device; `ddp` copies the model to each; `fsdp` shards it (FSDP2).
        threads: CPU threads of torch in each process; torch's own choice if absent.
    """

    count: Count = 1
    kind: Literal["accelerator", "cpu"] = "accelerator"
    sharding: Literal["none", "ddp", "fsdp"] = "none"
    threads: Count | None = None

    @property
    def shards(self) -> int:
        """Into how many parts weights, gradients and optimizer states are split."""
        return self.count if self.sharding == "fsdp" else 1


class Saes(Struct, frozen=True, kw_only=True):
    """The SAEs on the policy's residual stream.

    Attributes:
        hooked: how many layers are hooked, evenly spaced (see `default_layers_to_hook`).
        path: where the SAE of each layer lies: `{layer}` in it is replaced by the layer's number;
            without it, a directory that holds `layer-0`, `layer-20` and so on, or a published set
            of SAEs, in a directory or fetched from the hub as `owner/name`.
        published: where they can be had, for messages.
        latents: their width, for the memory estimate.
        l0: latents that are active on a token.
    """

    hooked: Count = 2
    path: str | None = None
    published: str | None = None
    latents: Count | None = None
    l0: Count | None = None


class Grpo(Struct, frozen=True, kw_only=True):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) as TRL does it.

    Attributes:
        steps: optimizer steps.
        learning_rate: of AdamW, constant after the warm-up.
        warmup_steps: steps over which it rises.
        adam_beta2: decay of the second moment.
        beta: weight of the KL term; above 0 a reference model is kept.
        temperature: of sampling.
        completions_per_prompt: size of a group.
        device_batch: completions in one forward of one device.
        accumulation: forwards per step.
        prompt_tokens: longest prompt, for the estimates.
        completion_tokens: tokens after which a completion is cut.
        gradient_checkpointing: recompute activations instead of keeping them.
        vllm: generate with vLLM.
        checkpoint_every_n_steps: how often weights and optimizer are saved.
        checkpoints_kept: how many checkpoints stay.
        trainer: further arguments of TRL's `GRPOConfig`, by name.
    """

    steps: Count = 1000
    learning_rate: Positive = 1e-6
    warmup_steps: Annotated[int, Meta(ge=0)] = 10
    adam_beta2: Annotated[float, Meta(gt=0, lt=1)] = 0.999
    beta: Annotated[float, Meta(ge=0)] = 0.0
    temperature: Positive = 1.0
    completions_per_prompt: Annotated[int, Meta(ge=2)] = 8
    device_batch: Count = 8
    accumulation: Count = 1
    prompt_tokens: Count = 512
    completion_tokens: Count = 512
    gradient_checkpointing: bool = True
    vllm: bool = False
    checkpoint_every_n_steps: Count = 50
    checkpoints_kept: Count = 3
    trainer: dict[str, Any] = field(default_factory=dict)


class Prompts(Struct, frozen=True, kw_only=True):
    """The prompts: a JSONL file of objects with a `prompt`; other keys go to the reward."""

    path: str | None = None


class Reward(Struct, frozen=True, kw_only=True):
    """The reward: `MODULE:FUNCTION`, called as TRL calls reward functions."""

    function: str | None = None


class Recording(Struct, frozen=True, kw_only=True):
    """What is written down.

    Attributes:
        top_k: latents recorded per token and layer.
        spill_every_n_steps: how many steps' records are appended together.
        text: write each completion's text into `completions.jsonl`.
        token_ids: likewise the token ids of prompts and completions.
    """

    top_k: Count = 16
    spill_every_n_steps: Count = 1
    text: bool = False
    token_ids: bool = False


class Preset(Struct, frozen=True, kw_only=True):
    """Everything that decides on a training run but where it goes.

    Attributes:
        summary: one line for people.
        seed: of data order, sampling and whatever is made from nothing.
        prepare: how what is trained comes into being, if it does not lie somewhere.
    """

    summary: str = ""
    seed: Seed = 0
    prepare: Preparation | None = None
    policy: Policy = Policy()
    devices: Devices = Devices()
    sae: Saes = Saes()
    grpo: Grpo = Grpo()
    prompts: Prompts = Prompts()
    reward: Reward = Reward()
    recording: Recording = Recording()

    @property
    def completions_per_step(self) -> int:
        """Completions that all devices together train on in an optimizer step."""
        return self.grpo.device_batch * self.grpo.accumulation * self.devices.count
