"""The reinforcement-learning run that the demo records: GRPO on the verifier's reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset  # type: ignore[import-untyped]
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from aegir_adapters.demo.rollouts import MAX_COMPLETION_TOKENS
from aegir_adapters.demo.task import draw_prompt, verifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import (
        PreTrainedTokenizerFast,
        Qwen3ForCausalLM,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

PROMPTS = 1024
CHECKPOINT_EVERY = 20
CHECKPOINTS_KEPT = 2


def grpo_config(output_dir: Path, *, steps: int, seed: int) -> GRPOConfig:
    """Return the trainer's arguments: 8 prompts a step, 8 completions each."""
    return GRPOConfig(
        output_dir=str(output_dir),
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=MAX_COMPLETION_TOKENS,
        learning_rate=2e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta2=0.98,
        beta=0.0,
        temperature=1.0,
        logging_steps=1,
        save_steps=CHECKPOINT_EVERY,
        save_total_limit=CHECKPOINTS_KEPT,
        report_to="none",
        disable_tqdm=True,
        # The defaults suit a GPU and are refused or slower on a CPU.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )


def build_trainer(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    output_dir: Path,
    steps: int = 80,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> GRPOTrainer:
    """Return a trainer that prints nothing and writes its checkpoints to `output_dir`.

    `on_step` is told (step, mean reward) after every step, from 1 on.
    """
    trainer = GRPOTrainer(
        model=policy,
        args=grpo_config(output_dir, steps=steps, seed=seed),
        reward_funcs=verifier,  # type: ignore[arg-type]  # it may abstain there, which ours never does
        train_dataset=draw_prompts(seed=seed),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    if on_step is not None:
        trainer.add_callback(_StepCallback(on_step))
    return trainer


def draw_prompts(*, seed: int, count: int = PROMPTS) -> Dataset:
    """Return the prompts to train on, a data set with the column `prompt`."""
    rng = np.random.default_rng(seed)
    return Dataset.from_dict({"prompt": [draw_prompt(rng) for _ in range(count)]})


class _StepCallback(TrainerCallback):
    """Pass each step's mean reward on as soon as the trainer logs it."""

    def __init__(self, on_step: Callable[[int, float], None]) -> None:
        self._on_step = on_step

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Pass the reward on; the summary at the end has none."""
        if logs and "reward" in logs:
            self._on_step(state.global_step, logs["reward"])
