from __future__ import annotations

from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.errors import OptionError
from aegir_stream.sampling import SamplingRule


def by_enumeration(rule: SamplingRule, token_index: int, length: int) -> float:
    """Return the chance that a token is recorded, summed over everything that can be drawn."""
    n, s, cap = rule.record_every_n_tokens, rule.token_share, rule.tokens_per_completion
    total = 0.0
    for first in range(n):
        positions = range(first, length, n)
        if token_index not in positions:
            continue
        for drawn in product((True, False), repeat=len(positions)):
            left = [p for p, kept in zip(positions, drawn, strict=True) if kept]
            if token_index in left:
                chance = s ** len(left) * (1 - s) ** (len(positions) - len(left))
                total += chance * min(1.0, (cap or len(left)) / len(left)) / n
    return total


@given(
    rule=st.builds(
        SamplingRule,
        record_every_n_tokens=st.integers(1, 4),
        token_share=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
        max_tokens_per_completion=st.none() | st.integers(1, 9),
    ),
    length=st.integers(1, 9),
    data=st.data(),
)
def test_the_probability_is_that_of_everything_that_can_be_drawn(
    rule: SamplingRule, length: int, data: st.DataObject
) -> None:
    """Every nth position, a share of them, then a cap: the stated chance is the exact one."""
    token_index = data.draw(st.integers(0, length - 1))
    expected = by_enumeration(rule, token_index, length)
    assert rule.probability(token_index, length=length) == pytest.approx(expected)


def test_the_probability_of_a_long_completion_stays_a_number() -> None:
    """Where no float holds the chance that nothing is drawn, the mean is still right."""
    rule = SamplingRule(token_share=0.5, max_tokens_per_completion=100)
    assert rule.probability(0, length=100_000) == pytest.approx(100 / 100_000)


@given(
    rule=st.builds(
        SamplingRule,
        record_every_n_tokens=st.integers(1, 9),
        token_share=st.floats(0.01, 1),
        max_tokens_per_step=st.none() | st.integers(64, 4096),
        completions_per_step=st.none() | st.integers(1, 64),
        sampling_seed=st.integers(0, 2**63),
    )
)
def test_a_rule_is_read_back_from_what_the_log_says(rule: SamplingRule) -> None:
    """What a note or a sidecar holds is enough to correct a statistic."""
    told = msgspec.json.decode(msgspec.json.encode(rule.describe()))
    assert SamplingRule.from_description(told) == rule


def test_a_step_is_split_evenly_and_never_exceeded() -> None:
    """What does not divide is not recorded; the narrower of two bounds holds."""
    rule = SamplingRule(max_tokens_per_step=100, completions_per_step=8)
    assert rule.tokens_per_completion == 12
    assert (
        SamplingRule(
            max_tokens_per_step=100, completions_per_step=8, max_tokens_per_completion=5
        ).tokens_per_completion
        == 5
    )
    assert SamplingRule(max_tokens_per_completion=5).tokens_per_completion == 5
    assert SamplingRule().tokens_per_completion is None


def test_without_a_budget_nothing_is_thinned() -> None:
    """The default records every token with certainty; each option thins by itself."""
    assert not SamplingRule().thins
    assert SamplingRule().probability(3, length=7) == 1
    assert SamplingRule().describe()["probability"] == "1"
    options: list[dict[str, Any]] = [
        {"record_every_n_tokens": 2},
        {"token_share": 0.5},
        {"max_tokens_per_completion": 9},
        {"max_tokens_per_step": 9},
    ]
    assert all(SamplingRule(**option).thins for option in options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"token_share": 0.0}, r"`token_share` above 0 and at most 1, got 0.0.*0.1"),
        ({"token_share": 1.5}, r"got 1.5"),
        ({"record_every_n_tokens": 0}, r"`record_every_n_tokens` of at least 1, got 0"),
        ({"max_tokens_per_completion": 0}, r"`max_tokens_per_completion` of at least 1"),
        (
            {"max_tokens_per_step": 7, "completions_per_step": 8},
            r"`max_tokens_per_step` of at least 8, one for each completion of a step, got 7.*share",
        ),
    ],
)
def test_an_impossible_budget_is_refused(option: dict[str, Any], message: str) -> None:
    """The message names the option, its value, and what to do."""
    with pytest.raises(OptionError, match=message):
        SamplingRule(**option)
