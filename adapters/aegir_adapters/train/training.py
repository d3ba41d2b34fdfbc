"""The trainer of a run: GRPO as a preset says, recorded."""

# ruff: noqa: ARG002 - transformers hands every event to a callback with all of these

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from msgspec import Struct
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from aegir_adapters.sae import SparseAutoencoder, load_sae
from aegir_adapters.train.sources import sae_place
from aegir_adapters.trainer import observe, verify_resume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from aegir_adapters.train.preset import Devices, Lora, Policy, Preset, Recording
    from aegir_stream.config import P5Cfg

__all__ = [
    "LoadedPolicy",
    "RecordedTrainer",
    "build_trainer",
    "grpo_config",
    "load_policy",
    "load_saes",
]


class LoadedPolicy(Struct, frozen=True, kw_only=True, eq=False):
    """A policy in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_policy(policy: Policy, *, allow_download: bool = False) -> LoadedPolicy:
    """Load model and tokenizer; from this disk only, unless a download is allowed."""
    where: dict[str, Any] = {"revision": policy.revision, "local_files_only": not allow_download}
    name = str(policy.model)
    return LoadedPolicy(
        model=AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, policy.dtype), **where
        ),
        tokenizer=AutoTokenizer.from_pretrained(name, padding_side="left", **where),
    )


def load_saes(path: str, layers: Sequence[int]) -> dict[int, SparseAutoencoder]:
    """Load the SAE of each layer.

    Raises:
        SAEFormatError: see `aegir_adapters.sae.load_sae`.
    """
    places = {layer: sae_place(path, layer) for layer in layers}
    return {layer: load_sae(place, layer=chosen) for layer, (place, chosen) in places.items()}


def grpo_config(preset: Preset, output_dir: Path) -> GRPOConfig:
    """Return the trainer's arguments."""
    grpo = preset.grpo
    args = GRPOConfig(
        output_dir=str(output_dir),
        seed=preset.seed,
        max_steps=grpo.steps,
        per_device_train_batch_size=grpo.device_batch,
        gradient_accumulation_steps=grpo.accumulation,
        num_generations=grpo.completions_per_prompt,
        max_completion_length=grpo.completion_tokens,
        learning_rate=grpo.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=grpo.warmup_steps,
        adam_beta2=grpo.adam_beta2,
        beta=grpo.beta,
        temperature=grpo.temperature,
        gradient_checkpointing=grpo.gradient_checkpointing,
        use_vllm=grpo.vllm,
        save_steps=grpo.checkpoint_every_n_steps,
        save_total_limit=grpo.checkpoints_kept,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        # The weights' dtype is the one that is computed in.
        bf16=False,
        # A loss pass uses every weight; to look for others costs a walk of the graph each step.
        ddp_find_unused_parameters=False,
        **_for_cpu(preset.devices),
        **grpo.trainer,
    )
    # Where more devices are visible than were asked for, transformers would spread one process
    # over all of them (`nn.DataParallel`); it has no argument against that.
    args._n_gpu = min(args.n_gpu, 1)  # noqa: SLF001
    return args


def build_trainer(
    preset: Preset,
    *,
    policy: LoadedPolicy,
    prompts: Sequence[Mapping[str, Any]],
    reward: Callable[..., Any],
    output_dir: Path,
) -> GRPOTrainer:
    """Return a trainer that prints nothing and writes its checkpoints to `output_dir`."""
    trainer = GRPOTrainer(
        model=policy.model,
        args=grpo_config(preset, output_dir),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([dict(row) for row in prompts]),
        processing_class=policy.tokenizer,
        peft_config=_lora_config(preset.policy.lora),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class RecordedTrainer:
    """A trainer with its recording, which ends in order where that is asked for.

    Args:
        trainer: what trains.
        saes: the SAE of each hooked layer.
        run: the run directory and its file names.
        recording: what is written down.
        allow_drift: resume although model, SAEs or layers are others than were recorded.
        is_asked: tells whether training shall end.
        on_step: told (step, mean reward) as soon as the trainer logs it.

    Raises:
        LayerError: a layer is out of range, or the model's layers are not found.
        ShapeError: an SAE is not as wide as the model, or has too few latents.

    Attributes:
        recording: its callback.
        stopped: whether training ended because that was asked for.
        reward: mean reward of the last step.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        *,
        saes: Mapping[int, SparseAutoencoder],
        run: P5Cfg,
        recording: Recording,
        allow_drift: bool,
        is_asked: Callable[[], bool],
        on_step: Callable[[int, float], None],
    ) -> None:
        self._trainer = trainer
        self._run = run
        self._allow_drift = allow_drift
        self._is_asked = is_asked
        self._on_step = on_step
        self.stopped = False
        self.reward: float | None = None
        # Before the recording, which would take the end of training for its goal.
        trainer.add_callback(_Watch(self))
        self.recording = observe(
            trainer,
            sae=saes,
            output_dir=run,
            top_k=recording.top_k,
            record_text=recording.text,
            record_token_ids=recording.token_ids,
            allow_drift=allow_drift,
        )

    @property
    def step(self) -> int:
        """The last optimizer step."""
        return self._trainer.state.global_step

    def train(self, checkpoint: Path | None) -> None:
        """Train to the end, or until that is asked for; however it ends, the log is closed.

        Args:
            checkpoint: where to go on; the beginning if absent.

        Raises:
            IdentityDriftError: the run differs from what the checkpoint was recorded with.
        """
        if checkpoint is not None:
            verify_resume(
                checkpoint,
                self.recording.identity,
                cfg=self._run,
                allow_drift=self._allow_drift,
            )
        try:
            self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            self.recording.detach()

    def step_ended(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Tell whether training shall end here; all ranks get the same answer."""
        asked = _on_any_rank(args, asked=self._is_asked())
        self.stopped = asked and state.global_step < state.max_steps
        return self.stopped

    def step_logged(self, step: int, logs: Mapping[str, float]) -> None:
        """Pass the reward on; the summary at the end has none."""
        if "reward" in logs:
            self.reward = logs["reward"]
            self._on_step(step, self.reward)

    def training_ended(self) -> None:
        """Close the log as `stopped`, if it was."""
        if self.stopped:
            self.recording.detach()


class _Watch(TrainerCallback):
    """Passes the trainer's events on."""

    def __init__(self, receiver: RecordedTrainer) -> None:
        self._receiver = receiver

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End after this step, with a checkpoint, if that is asked for."""
        if self._receiver.step_ended(args, state):
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass on what was logged."""
        self._receiver.step_logged(state.global_step, kwargs.get("logs") or {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell that training has ended."""
        self._receiver.training_ended()


def _on_any_rank(args: TrainingArguments, *, asked: bool) -> bool:
    """Agree over all ranks: one that went on alone would wait for the others for ever."""
    if args.world_size == 1:
        return asked
    flag = torch.tensor(int(asked), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _for_cpu(devices: Devices) -> dict[str, Any]:
    return {"use_cpu": True, "dataloader_pin_memory": False} if devices.kind == "cpu" else {}


def _lora_config(lora: Lora | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig  # noqa: PLC0415 - few need it

    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
