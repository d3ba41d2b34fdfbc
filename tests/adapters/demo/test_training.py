from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from aegir_adapters.demo.libraries import hub_offline, one_torch_thread, quiet_libraries
from aegir_adapters.demo.policy import build_policy
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.demo.training import build_trainer, draw_prompts

if TYPE_CHECKING:
    from pathlib import Path


def rewards(output_dir: Path, *, seed: int) -> list[tuple[int, float]]:
    """Return (step, mean reward) of two steps of GRPO on a policy that has learned nothing."""
    seen: list[tuple[int, float]] = []
    tokenizer = build_tokenizer()
    with hub_offline(), quiet_libraries(), one_torch_thread():
        trainer = build_trainer(
            build_policy(tokenizer, seed=seed),
            tokenizer,
            output_dir=output_dir,
            steps=2,
            seed=seed,
            on_step=lambda step, reward: seen.append((step, reward)),
        )
        assert PrinterCallback not in map(type, trainer.callback_handler.callbacks)
        trainer.train()
    return seen


def test_two_steps_of_grpo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The trainer takes its steps, tells the reward of each, saves, and prints nothing."""
    seen = rewards(tmp_path, seed=0)
    assert [step for step, _ in seen] == [1, 2]
    assert all(0.0 <= reward <= 1.0 for _, reward in seen)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    assert capfd.readouterr() == ("", "")


def test_prompts_are_reproducible() -> None:
    """The same seed gives the same data set, another seed another."""
    assert draw_prompts(seed=1, count=8)[:] == draw_prompts(seed=1, count=8)[:]
    assert draw_prompts(seed=1, count=8)[:] != draw_prompts(seed=2, count=8)[:]


def test_libraries_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Being offline and quiet ends with the demo."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    bars = transformers_logging.is_progress_bar_enabled()
    with hub_offline(), quiet_libraries():
        assert constants.is_offline_mode()
        assert not transformers_logging.is_progress_bar_enabled()
    assert not constants.is_offline_mode()
    assert transformers_logging.is_progress_bar_enabled() == bars
