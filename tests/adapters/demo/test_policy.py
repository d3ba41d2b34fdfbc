from __future__ import annotations

import numpy as np
import pytest
import torch

from aegir_adapters.demo.policy import IGNORED, build_policy, draw_batch, fine_tune
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.train.libraries import torch_threads

TOKENIZER = build_tokenizer()


def losses(seed: int, steps: int) -> list[float]:
    """Return the loss of each step of fine-tuning a new policy."""
    seen: list[float] = []
    with torch_threads(1):
        policy = build_policy(TOKENIZER, seed=seed)
        fine_tune(
            policy, TOKENIZER, seed=seed, steps=steps, on_step=lambda _, loss: seen.append(loss)
        )
    return seen


def test_the_policy_is_small() -> None:
    """The policy has 165,504 parameters, in four layers."""
    policy = build_policy(TOKENIZER, seed=0)
    assert policy.num_parameters() == 165_504
    assert len(policy.model.layers) == 4
    assert policy.model.rotary_emb.inv_freq[-1] == pytest.approx(1000.0 ** (-14 / 16))


def test_only_answers_are_learned() -> None:
    """The loss covers each answer with its end and neither prompt nor padding."""
    batch = draw_batch(TOKENIZER, np.random.default_rng(0), size=32)
    learned = batch["labels"] != IGNORED
    assert batch["input_ids"].shape == (32, 17)
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    for row, kept in zip(batch["input_ids"], learned, strict=True):
        words = TOKENIZER.convert_ids_to_tokens(row[kept])
        assert words[-1] == "<eos>"
        assert 1 <= len(words) - 1 <= 6
        assert TOKENIZER.convert_ids_to_tokens(row[: int(kept.int().argmax())])[-1] == "=>"
        assert "<eos>" not in words[:-1]


def test_fine_tuning_learns() -> None:
    """Twenty-five steps lower the loss well below that of random weights."""
    seen = losses(0, 25)
    assert len(seen) == 25
    assert seen[-1] < 0.6 * seen[0]


def test_fine_tuning_is_reproducible() -> None:
    """The same seed gives the same losses to the last bit, another seed others."""
    assert losses(1, 3) == losses(1, 3)
    assert losses(1, 3) != pytest.approx(losses(2, 3))
