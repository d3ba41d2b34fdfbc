"""A GRPO run small enough for a test: three layers, twelve words, a few steps on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from aegir_stream import codec
from aegir_stream.events import Completion, GRPOMetrics, Progress, SAELogRecord
from aegir_stream.layout import STREAMS, RunDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
WORDS = (PAD, END, UNKNOWN, *(f"w{i}" for i in range(9)))
HIDDEN = 32
LATENTS = 64
LAYERS = (0, 1)
TOP_K = 8


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a left-padding tokenizer of twelve words."""
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
    )


def model(*, seed: int = 0) -> Qwen3ForCausalLM:
    """Return a Qwen3 with three narrow layers and random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config)


class Top(NamedTuple):
    """What `TinySAE` says about tokens."""

    indices: Tensor
    activations: Tensor
    reconstruction_loss: Tensor
    l0: Tensor
    fired: Tensor


class TinySAE:
    """A standard SAE with random weights, written down as plainly as possible."""

    def __init__(self, *, seed: int, d_model: int = HIDDEN, n_latents: int = LATENTS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.w_enc = torch.randn(d_model, n_latents, generator=generator) / d_model**0.5
        self.b_enc = torch.randn(n_latents, generator=generator) * 0.1
        self.w_dec = torch.randn(n_latents, d_model, generator=generator) / n_latents**0.5
        self.seed = seed

    @property
    def d_model(self) -> int:
        """Width of its input."""
        return int(self.w_enc.shape[0])

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return int(self.w_enc.shape[1])

    def top(self, x: Tensor, *, k: int) -> Top:
        """Describe tokens by their k strongest latents."""
        code = (x @ self.w_enc + self.b_enc).relu()
        activations, indices = code.topk(k, dim=1)
        loss = (x - code @ self.w_dec).square().sum(1)
        active = code > 0
        return Top(indices.int(), activations, loss, active.sum(1), active.any(0))

    def identity(self) -> dict[str, Any]:
        """Return its seed."""
        return {"architecture": "standard", "seed": self.seed}

    def to(self, device: torch.device, /) -> TinySAE:
        """Return itself: there is only the CPU here."""
        assert device.type == "cpu"
        return self


def saes(layers: Sequence[int] = LAYERS) -> dict[int, TinySAE]:
    """Return an SAE for each layer."""
    return {layer: TinySAE(seed=layer) for layer in layers}


def judge(ids: Sequence[int]) -> float:
    """Return the reward of a completion; every word counts, in its place."""
    return sum((place + 1) * token for place, token in enumerate(ids)) % 97 / 97


def graded(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
    """Reward every completion by `judge`."""
    return [judge(ids) for ids in completion_ids]


def moody(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
    """Reward completions of even length, abstain from the others."""
    return [None if len(ids) % 2 else 1.0 for ids in completion_ids]


WEIGHTS = {"graded": 1.0, "moody": 0.5}


def prompts(count: int = 64) -> Dataset:
    """Return prompts of one to four words, so that batches are padded."""
    texts = [" ".join(f"w{(i + j) % 9}" for j in range(1 + i % 4)) for i in range(count)]
    return Dataset.from_dict({"prompt": texts})


def grpo_trainer(
    output_dir: Path,
    *,
    policy: Qwen3ForCausalLM | None = None,
    kind: type[GRPOTrainer] = GRPOTrainer,
    **args: Any,
) -> GRPOTrainer:
    """Return a quiet trainer of four completions per prompt, at learning rate 0 unless told."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "reward_weights": list(WEIGHTS.values()),
        "seed": 3,
    }
    trainer = kind(
        model=policy or model(),
        args=GRPOConfig(output_dir=str(output_dir), **settings | args),
        reward_funcs=[graded, moody],
        train_dataset=prompts(),
        eval_dataset=prompts(8),
        processing_class=tokenizer(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Recorded:
    """What a finished run left on the disk, of one rank and one attempt."""

    def __init__(self, path: Path | str, *, lane: str = "rank0") -> None:
        self.run = RunDirectory.at(path)
        self.lane = lane

    def lines(self, stream: str) -> list[bytes]:
        """Return all lines of a stream's file, without newlines."""
        content = self.run.live(stream, self.lane).read_bytes()
        assert content.endswith(b"\n")
        return content.splitlines()

    def events(self, stream: str) -> list[Any]:
        """Return the data events of a stream's file."""
        kind = STREAMS[stream].kind
        data = (line for line in self.lines(stream) if not codec.is_control(line))
        return [codec.decode(line, kind) for line in data]

    @property
    def records(self) -> list[SAELogRecord]:
        """The SAE records of the live tail."""
        return self.events("sae_features")

    @property
    def completions(self) -> list[Completion]:
        """The completions."""
        return self.events("completions")

    @property
    def metrics(self) -> list[GRPOMetrics]:
        """One line per step."""
        return self.events("grpo_metrics")

    @property
    def progress(self) -> list[Progress]:
        """One line per step of the progress feed."""
        return self.events("progress")

    def control(self, stream: str = "sae_features") -> list[Any]:
        """Return the control lines of a stream."""
        lines = self.lines(stream)
        return [codec.decode_control(line) for line in lines if codec.is_control(line)]


def residuals(policy: Qwen3ForCausalLM, ids: Sequence[int]) -> Mapping[int, Tensor]:
    """Return the output of each layer, (T, d_model), by a forward of one sequence alone."""
    with torch.no_grad():
        output = policy.train(mode=False).model(torch.tensor([ids]), output_hidden_states=True)
    return {layer: output.hidden_states[layer + 1][0] for layer in LAYERS}
