from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from aegir_adapters.trainer import observe
from aegir_adapters.trainer.sampling import Sampler
from aegir_adapters.trainer.tokens import Tokens, completion_tokens
from aegir_stream.errors import OptionError
from aegir_stream.events import Note
from aegir_stream.sampling import SamplingRule

from .tiny import LAYERS, TOP_K, Recorded, grpo_trainer, saes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

Chosen = set[tuple[int, int]]

RULES = st.builds(
    SamplingRule,
    record_every_n_tokens=st.integers(1, 3),
    token_share=st.sampled_from([0.3, 0.8, 1.0]),
    max_tokens_per_completion=st.none() | st.integers(1, 6),
    sampling_seed=st.integers(0, 2**64 - 1),
)
LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=8)


def batch(lengths: Sequence[int], ids: Sequence[int] | None = None) -> Tokens:
    """Return the tokens of completions of these lengths, padded on the right."""
    mask = torch.arange(max(*lengths, 1))[None, :] < torch.tensor(lengths)[:, None]
    names = torch.tensor(list(range(len(lengths)) if ids is None else ids))
    return completion_tokens(mask, offset=2, completion=names)


def chosen(tokens: Tokens) -> Chosen:
    """Return completion and position of each token."""
    assert tokens.completion is not None
    return set(zip(tokens.completion.tolist(), tokens.token_index.tolist(), strict=True))


@given(rule=RULES, lengths=LENGTHS, step=st.integers(1, 1000), data=st.data())
def test_the_choice_depends_on_the_token_alone(
    rule: SamplingRule, lengths: list[int], step: int, data: st.DataObject
) -> None:
    """However completions are ordered, split and padded, the same of their tokens are recorded."""
    whole = chosen(Sampler(rule).thin(batch(lengths), step=step))
    order = data.draw(st.permutations(range(len(lengths))))
    cut = data.draw(st.integers(1, len(lengths)))
    split: Chosen = set()
    for part in (order[:cut], order[cut:]):
        if part:
            tokens = batch([lengths[i] for i in part], part)
            split |= chosen(Sampler(rule).thin(tokens, step=step))
    assert split == whole


@given(rule=RULES, lengths=LENGTHS, step=st.integers(1, 1000))
def test_a_thinned_batch_still_knows_its_tokens(
    rule: SamplingRule, lengths: list[int], step: int
) -> None:
    """What is kept is a part of the batch in its order, with its own residuals."""
    tokens = batch(lengths)
    thinned = Sampler(rule).thin(tokens, step=step)
    hidden = torch.randn(*tokens.shape, 3)
    for row, column, x in zip(thinned.rows, thinned.columns, thinned.select(hidden), strict=True):
        assert torch.equal(x, hidden[row, column])
    at = (thinned.rows * tokens.shape[1] + thinned.columns).tolist()
    assert at == sorted(set(at))
    assert chosen(thinned) <= chosen(tokens)


@given(rule=RULES, lengths=LENGTHS, step=st.integers(1, 1000))
def test_no_completion_exceeds_its_bound(rule: SamplingRule, lengths: list[int], step: int) -> None:
    """At most the stated number of tokens of each completion is recorded."""
    counts = Counter(c for c, _ in chosen(Sampler(rule).thin(batch(lengths), step=step)))
    cap = rule.tokens_per_completion
    assert cap is None or all(count <= cap for count in counts.values())


@given(
    budget=st.integers(16, 60),
    lengths=st.lists(st.integers(0, 12), min_size=16, max_size=16),
    named=st.booleans(),
)
def test_no_step_exceeds_its_bound(budget: int, lengths: list[int], *, named: bool) -> None:
    """Over all forwards of a step, ids or not, at most the budget is recorded."""
    rule = SamplingRule(max_tokens_per_step=budget, completions_per_step=16 if named else None)
    sampler = Sampler(rule, forwards_per_step=2)
    total = 0
    for part in (lengths[:8], lengths[8:]):
        mask = torch.arange(12)[None, :] < torch.tensor(part)[:, None]
        ids = torch.arange(8) if named else None
        total += sampler.thin(completion_tokens(mask, offset=0, completion=ids), step=3).count
    assert total <= budget
    if all(length >= budget // 16 for length in lengths):
        assert total == budget // 16 * 16


@pytest.mark.parametrize(
    "rule",
    [
        SamplingRule(record_every_n_tokens=3),
        SamplingRule(token_share=0.25),
        SamplingRule(max_tokens_per_completion=4),
        SamplingRule(record_every_n_tokens=2, token_share=0.7, max_tokens_per_completion=2),
    ],
    ids=["every third", "a quarter", "four of each", "all three"],
)
def test_every_token_is_recorded_as_often_as_the_rule_says(rule: SamplingRule) -> None:
    """Of 8,000 completions as many have each position as its probability says (exact test)."""
    completions, length = 8000, 13
    thinned = Sampler(rule).thin(batch([length] * completions), step=7)
    seen = torch.bincount(thinned.token_index, minlength=length).tolist()
    for index, count in enumerate(seen):
        probability = rule.probability(index, length=length)
        assert binomtest(count, completions, probability).pvalue > 1e-4, index


def test_seed_and_step_draw_anew_and_a_repetition_does_not() -> None:
    """A resumed step has the tokens it had; another step or seed has others."""
    rule = SamplingRule(token_share=0.5)

    def draw(seed: int, step: int) -> Chosen:
        again = SamplingRule(token_share=0.5, sampling_seed=seed)
        return chosen(Sampler(again).thin(batch([12] * 8), step=step))

    assert draw(0, 5) == chosen(Sampler(rule).thin(batch([12] * 8), step=5))
    assert len({frozenset(draw(seed, step)) for seed in (0, 1) for step in (5, 6)}) == 4


@given(rule=RULES, lengths=LENGTHS, step=st.integers(1, 1000))
def test_tokens_that_come_one_by_one_are_a_part_of_those_of_the_whole(
    rule: SamplingRule, lengths: list[int], step: int
) -> None:
    """A decoded token that is recorded is recorded in the loss pass too, so that they join."""
    whole = chosen(Sampler(rule).thin(batch(lengths), step=step))
    sampler = Sampler(rule, horizon=12)
    single: Chosen = set()
    for index in range(12):
        ids = torch.tensor([i for i, length in enumerate(lengths) if length > index])
        if len(ids):
            tokens = Tokens(
                rows=torch.arange(len(ids)),
                columns=torch.zeros(len(ids), dtype=torch.int64),
                token_index=torch.full((len(ids),), index),
                completion=ids,
                shape=(len(ids), 1),
            )
            single |= chosen(sampler.thin(tokens, step=step, whole=False))
    assert single <= whole
    if set(lengths) == {12}:
        assert single == whole


def test_a_budget_below_the_sequences_of_a_forward_is_refused() -> None:
    """Where nobody knew the number of sequences before, the first forward tells it."""
    sampler = Sampler(SamplingRule(max_tokens_per_step=7), forwards_per_step=2)
    tokens = completion_tokens(torch.ones(4, 3), offset=0, completion=None)
    with pytest.raises(OptionError, match="at least 8"):
        sampler.thin(tokens, step=1)


def test_a_run_with_a_budget_records_what_its_log_says(tmp_path: Path) -> None:
    """The same tokens at all layers, again when repeated; the rule in log, sidecar, self-test."""
    budget = {"record_every_n_tokens": 2, "max_tokens_per_step": 16, "sampling_seed": 4}
    first, second = (recorded_by(tmp_path / name, **budget) for name in ("one", "two"))
    records = first.records
    assert records == second.records
    by_layer = {
        layer: {(r.step, r.completion, r.token_index) for r in records if r.layer_index == layer}
        for layer in LAYERS
    }
    assert by_layer[0] == by_layer[1]
    assert 0 < len(by_layer[0]) < sum(c.length for c in first.completions) / 2
    assert max(Counter((r.step, r.completion, r.layer_index) for r in records).values()) <= 2
    assert [m.records for m in first.metrics] == [
        sum(r.step == step for r in records) for step in (1, 2)
    ]

    told, tested = (line.detail for line in first.control() if isinstance(line, Note))
    assert SamplingRule.from_description(told) == SamplingRule(completions_per_step=8, **budget)
    assert tested["sampling"] == told
    assert first.run.read_manifest()["sampling"] == told


def recorded_by(output_dir: Path, **budget: Any) -> Recorded:
    """Train two steps under a budget."""
    trainer = grpo_trainer(output_dir)
    observe(trainer, sae=saes(), top_k=TOP_K, **budget)
    trainer.train()
    return Recorded(output_dir)


def test_a_budget_below_a_steps_completions_is_an_error_before_training(tmp_path: Path) -> None:
    """Nothing would be recorded: the user learns it while nothing is lost."""
    trainer = grpo_trainer(tmp_path)
    with pytest.raises(OptionError, match="at least 8, one for each completion of a step, got 5"):
        observe(trainer, sae=saes(), top_k=TOP_K, max_tokens_per_step=5)
