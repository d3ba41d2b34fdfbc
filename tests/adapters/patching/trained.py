"""Trainings that are watched closely: everything that a sweep in their midst could change."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from adapters.trainer.tiny import WORDS, graded, grpo_trainer, model
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import PatchSweepRequest, convert_request
from aegir_adapters.patching.service import PatchService
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_reader import SweepReader

CIRCUIT: dict[str, Any] = {
    "prompt": [3, 4, 5, 6, 7],
    "clean_prompt": [3, 9, 5, 6, 7],
    "answer": [8],
    "foil": [10],
    "hooks": ["resid_pre", "attn_out", "mlp_out", "z.1"],
    "metric": "logit_diff",
}
"""A study of four hooks, in token ids: it needs no tokenizer."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_TIMED = ("time", "per_second")


class Witness(TrainerCallback):
    """Writes down, at each step, what a training is made of.

    Attributes:
        gradients: before each optimizer step.
        states: at the beginning of each step.
        ends: when training has begun and when each step has ended, as far as this callback's turn.
        logs: what was logged, but for times.
    """

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.states: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []
        self.logs: list[dict[str, Any]] = []

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        """Keep the state that training begins with."""
        self.ends.append(state_of(kwargs["model"]))

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        """Keep the state that a step begins with."""
        self.states.append(state_of(kwargs["model"]))

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        """Keep the gradients."""
        named = kwargs["model"].named_parameters()
        found = {name: p.grad.clone() for name, p in named if p.grad is not None}
        self.gradients.append(found)

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        """Keep the state that a step leaves."""
        self.ends.append(state_of(kwargs["model"]))

    def on_log(self, *_: Any, **kwargs: Any) -> None:
        """Keep what is logged."""
        kept = {k: v for k, v in kwargs["logs"].items() if not any(word in k for word in _TIMED)}
        self.logs.append(kept)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything that a forward reads, or that somebody could leave in a model."""
    modules = dict(model.named_modules())
    configs = {id(m.config): m.config for m in modules.values() if hasattr(m, "config")}
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the one that trainers seed
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
        "trained": [n for n, p in model.named_parameters() if p.requires_grad],
        "gradients": [n for n, p in model.named_parameters() if p.grad is not None],
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "modes": {n: m.training for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "lengths": {n: vars(m).get("max_seq_len_cached") for n, m in modules.items()},
        "hooks": {n: [len(vars(m)[k]) for k in _HOOKS] for n, m in modules.items()},
        "configs": [config.to_dict() for config in configs.values()],
        "attention": [getattr(c, "_attn_implementation", None) for c in configs.values()],
        "generation": [m.generation_config.to_dict() for m in modules.values() if _generates(m)],
        "grad_enabled": torch.is_grad_enabled(),
    }


def _generates(module: nn.Module) -> bool:
    return getattr(module, "generation_config", None) is not None


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yield where two of these differ, be it by a bit."""
    if isinstance(one, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif isinstance(one, Tensor | np.ndarray):
        if not np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True):
            yield path
    elif one != other and not (_is_nan(one) and _is_nan(other)):
        yield path


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


class Trained:
    """A training from its beginning to its end, and what came of it.

    Attributes:
        trainer: its trainer.
        before: a witness whose turn is before that of the callbacks.
        after: likewise after it.
        completions: what was generated.
    """

    def __init__(self, trainer: Any, *callbacks: TrainerCallback) -> None:
        self.trainer = trainer
        self.before, self.after = Witness(), Witness()
        self.completions: list[list[list[int]]] = []
        if hasattr(trainer, "reward_funcs"):
            trainer.reward_funcs[0] = self._graded
        for callback in (self.before, *callbacks):
            trainer.add_callback(callback)
        trainer.callback_handler.callbacks.append(self.after)  # twice is warned of
        trainer.train()

    def __call__(self) -> dict[str, Any]:
        """Return all that should not depend on whether it was watched."""
        return {
            "before": vars(self.before),
            "after": vars(self.after),
            "completions": self.completions,
            "optimizer": self.trainer.optimizer.state_dict(),
            "state": state_of(self.trainer.model),
        }

    def _graded(self, completion_ids: list[list[int]], **more: Any) -> list[float | None]:
        self.completions.append([list(ids) for ids in completion_ids])
        return graded(completion_ids, **more)


def gpt2() -> GPT2LMHeadModel:
    """Return a GPT-2 of the tiny model's vocabulary, with dropout everywhere."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_embd=32,
        n_head=2,
        n_layer=3,
        n_positions=64,
        initializer_range=0.3,
        resid_pdrop=0.2,
        embd_pdrop=0.2,
        attn_pdrop=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config)


def dropping() -> Qwen3ForCausalLM:
    """Return the tiny model with dropout in its attention."""
    policy = model()
    policy.config.attention_dropout = 0.2
    for layer in policy.model.layers:
        layer.self_attn.attention_dropout = 0.2
    return policy


def compiled() -> Qwen3ForCausalLM:
    """Return the tiny model with each layer compiled in its place, and used like that."""
    policy = model()
    for layer in policy.model.layers:
        layer.compile(backend="eager")
    policy.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for length in (5, 6, 7):
            policy(torch.arange(length)[None], use_cache=False)
    return policy


def adapted() -> Any:
    """Return the tiny model with low-rank adapters, which have dropout as well."""
    modules = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(
        r=4,
        target_modules=modules,
        task_type="CAUSAL_LM",
        lora_dropout=0.2,
        init_lora_weights=False,
    )
    return get_peft_model(model(), config)


def stretching() -> Qwen3ForCausalLM:
    """Return a tiny model whose forwards leave traces, even in evaluation.

    Its rotary frequencies follow the longest sequence seen, and it draws random numbers of every
    kind.
    """
    config = model().config
    config.max_position_embeddings = len(CIRCUIT["prompt"])
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    torch.manual_seed(0)
    policy = Qwen3ForCausalLM(config)

    def draw(*_: Any) -> None:
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002, S311 - what is to be kept

    policy.model.norm.register_forward_hook(draw)
    return policy


def grpo(output_dir: Path, policy: Callable[[], Any] = model, **args: Any) -> Any:
    """Return a GRPO trainer of two steps that learn."""
    settings = {"learning_rate": 1e-2, "max_steps": 2} | args
    return grpo_trainer(output_dir, policy=policy(), **settings)


def plain(output_dir: Path, policy: Callable[[], Any] = model, **args: Any) -> Trainer:
    """Return a plain trainer of two steps, of a model that learns to repeat itself."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }
    rows = [torch.tensor([3, 4, 5, 6, 7, 8, 9, 10][: 8 - row % 2]) for row in range(8)]
    trainer = Trainer(
        model=policy(),
        args=TrainingArguments(output_dir=str(output_dir), **settings | args),
        train_dataset=[{"input_ids": ids} for ids in rows],
        data_collator=_labelled,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _labelled(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    shortest = min(len(row["input_ids"]) for row in rows)
    ids = torch.stack([row["input_ids"][:shortest] for row in rows])
    return {"input_ids": ids, "labels": ids}


def swept_alone(module: nn.Module, study: Mapping[str, Any]) -> dict[Any, float | None]:
    """Return the cells of a study by hook, layer and position, of a model that nobody trains."""
    request = convert_request({"layers": "all", **study}, PatchSweepRequest)
    with PatchService(PatchableModel(module)).sweep(request) as running:
        cells = [cell for batch in running.batches() for cell in batch]
    return {(cell.hook, cell.layer, cell.position): cell.value for cell in cells}


def recorded_cells(sweep: SweepReader) -> dict[Any, float | None]:
    """Return the cells of a sweep that was recorded."""
    return {
        (cell.hook, cell.layer, cell.position): cell.value for cell in sweep.grids.cells.values()
    }


def sweeps_of(output_dir: Path) -> list[SweepReader]:
    """Return the sweeps that lie in a run directory, read."""
    run = RunDirectory.at(output_dir)
    readers = [SweepReader(run, file) for file in run.sweeps()]
    for reader in readers:
        reader.poll()
    return readers
