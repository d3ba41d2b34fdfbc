from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from aegir_adapters.trainer import Precision, observe

from .tiny import (
    LAYERS,
    TOP_K,
    WEIGHTS,
    WORDS,
    Recorded,
    grpo_trainer,
    judge,
    model,
    residuals,
    saes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from aegir_stream.events import Completion

# TRL 1.16 asks transformers 5.23 for what the latter has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

REENTRANT, MODERN = {"use_reentrant": True}, {"use_reentrant": False}

# The trainer's arguments, and how many completions each step is the first to train on.
GENERATIONS: dict[str, tuple[dict[str, Any], dict[int, int]]] = {
    "one generation a step": ({}, {1: 8, 2: 8}),
    "gradient accumulation": ({"gradient_accumulation_steps": 2}, {1: 16, 2: 16}),
    "a generation for two steps": (
        {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 4,
            "max_steps": 4,
        },
        {1: 8, 2: 8, 3: 8, 4: 8},
    ),
    "two generations a step": (
        {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
        {1: 16, 2: 16},
    ),
    "generations out of step": (
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "max_steps": 3},
        {1: 16, 2: 16, 3: 16},
    ),
    "two iterations": ({"num_iterations": 2, "max_steps": 4}, {1: 8, 3: 8}),
    "gradient checkpointing": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": MODERN},
        {1: 8, 2: 8},
    ),
    "reentrant checkpointing": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": REENTRANT},
        {1: 8, 2: 8},
    ),
    "evaluation in between": ({"eval_strategy": "steps", "eval_steps": 1}, {1: 8, 2: 8}),
}


@pytest.mark.parametrize(("args", "expected"), GENERATIONS.values(), ids=GENERATIONS.keys())
def test_every_completion_token_is_recorded_once_with_its_reward(
    args: dict[str, Any], expected: dict[int, int], tmp_path: Path
) -> None:
    """However batches are generated, split and repeated, each token and reward appears once."""
    trainer = grpo_trainer(tmp_path, **args)
    callback = observe(
        trainer, sae=saes(), top_k=TOP_K, record_token_ids=True, precision=Precision.exact()
    )
    trainer.train()
    statistics = callback.statistics()
    assert (statistics.errors, statistics.records_dropped) == (0, 0), statistics.last_error

    recorded = Recorded(tmp_path)
    assert Counter(c.step for c in recorded.completions) == expected
    assert_every_token_once(recorded)
    assert_rewards_are_the_verifiers(recorded.completions)
    assert_features_are_those_of_a_lone_forward(recorded)


def assert_every_token_once(recorded: Recorded) -> None:
    """Positions run from 0 to length - 1 in every completion, at every layer, once each."""
    lengths = {(c.step, c.completion): c.length for c in recorded.completions}
    assert len(lengths) == len(recorded.completions)
    tokens = Counter((r.step, r.completion, r.layer_index, r.token_index) for r in recorded.records)
    assert tokens == Counter(
        (*key, layer, index)
        for key, length in lengths.items()
        for layer in LAYERS
        for index in range(length)
    )


def assert_rewards_are_the_verifiers(completions: list[Completion]) -> None:
    """The rewards of a completion are those of its own token ids."""
    for completion in completions:
        assert completion.token_ids is not None
        even = len(completion.token_ids) % 2 == 0
        expected = {"graded": judge(completion.token_ids), "moody": 1.0 if even else None}
        assert completion.rewards == pytest.approx(expected)
        total = sum(WEIGHTS[name] * (value or 0) for name, value in expected.items())
        assert completion.reward == pytest.approx(total)


def assert_features_are_those_of_a_lone_forward(recorded: Recorded) -> None:
    """What was read in a padded, shuffled batch is what the sequence gives by itself."""
    policy, autoencoders = model(), saes()
    of_token = {(r.step, r.completion, r.layer_index, r.token_index): r for r in recorded.records}
    for c in recorded.completions:
        assert c.prompt_ids is not None
        assert c.token_ids is not None
        for layer, hidden in residuals(policy, c.prompt_ids + c.token_ids).items():
            x = hidden[len(c.prompt_ids) :]
            sae = autoencoders[layer]
            code, top = (x @ sae.w_enc + sae.b_enc).relu(), sae.top(x, k=TOP_K)
            for index in range(c.length):
                record = of_token[c.step, c.completion, layer, index]
                activations = torch.tensor(record.top_feature_activations)
                chosen = torch.tensor(record.top_feature_indices)
                torch.testing.assert_close(activations, top.activations[index], atol=1e-4, rtol=0)
                torch.testing.assert_close(activations, code[index, chosen], atol=1e-4, rtol=0)
                loss = top.reconstruction_loss[index].item()
                assert record.reconstruction_loss == pytest.approx(loss, rel=1e-4)


def test_truncated_completions_that_the_trainer_masks_have_no_records(tmp_path: Path) -> None:
    """A completion that takes no part in the loss is described, and none of its tokens is read."""
    trainer = grpo_trainer(tmp_path, mask_truncated_completions=True, max_completion_length=3)
    observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()

    recorded = Recorded(tmp_path)
    read = {(r.step, r.completion) for r in recorded.records}
    assert {c.terminated for c in recorded.completions} == {True, False}
    assert read == {(c.step, c.completion) for c in recorded.completions if c.terminated}


def test_an_id_is_unique_within_every_step(tmp_path: Path) -> None:
    """A generation that starts before the last one is used up counts on from its ids."""
    trainer = grpo_trainer(
        tmp_path, gradient_accumulation_steps=2, steps_per_generation=3, max_steps=3
    )
    observe(trainer)
    trainer.train()

    completions = Recorded(tmp_path).completions
    assert len({(c.step, c.completion) for c in completions}) == len(completions) == 48
    assert all(c.group == c.completion // 4 for c in completions)


def test_text_and_token_ids_are_recorded_only_when_asked_for(tmp_path: Path) -> None:
    """By default a completion is described without its content."""
    trainer = grpo_trainer(tmp_path / "plain", max_steps=1)
    observe(trainer)
    trainer.train()
    assert {c.text for c in Recorded(tmp_path / "plain").completions} == {None}
    assert {c.token_ids for c in Recorded(tmp_path / "plain").completions} == {None}

    trainer = grpo_trainer(tmp_path / "full", max_steps=1)
    observe(trainer, record_text=True, record_token_ids=True)
    trainer.train()
    for completion in Recorded(tmp_path / "full").completions:
        assert completion.token_ids is not None
        words = [WORDS[i] for i in completion.token_ids if i > 2]
        assert completion.text == " ".join(words)
        assert completion.prompt_ids
        assert completion.terminated == (completion.token_ids[-1] == 1)
