from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.demo.separation import contrast, separating_features
from aegir_stream.events import Completion, SAELogRecord

REWARDED, UNREWARDED, EQUAL = 1.0, -1.0, 0.0


def completion(number: int, advantage: float, *, length: int = 2) -> Completion:
    """Return a completion of step 1."""
    return Completion(
        step=1,
        completion=number,
        rank=0,
        group=0,
        rewards={"verifier": advantage},
        reward=advantage,
        advantage=advantage,
        length=length,
        terminated=True,
    )


def record(number: int, activations: Mapping[int, float], *, layer: int = 0) -> SAELogRecord:
    """Return a record of one token of a completion of step 1."""
    return SAELogRecord(
        step=1,
        token_index=0,
        layer_index=layer,
        top_feature_indices=tuple(activations),
        top_feature_activations=tuple(activations.values()),
        reconstruction_loss=0.0,
        completion=number,
    )


def test_the_feature_that_follows_the_reward_comes_first() -> None:
    """A feature that fires exactly where completions are rewarded separates them perfectly."""
    completions = [completion(i, REWARDED if i % 2 else UNREWARDED) for i in range(20)]
    records = [record(i, {7: 4.0, 1: 1.0} if i % 2 else {1: 1.0}) for i in range(20)]
    best, *others = separating_features(records, completions)
    assert (best.layer_index, best.feature, best.support) == (0, 7, 10)
    assert best.correlation == pytest.approx(1.0)
    # One record of two tokens: the other token counts with activation 0.
    assert (best.mean_rewarded, best.mean_unrewarded) == (2.0, 0.0)
    assert [(o.feature, o.correlation) for o in others] == [(1, 0.0)]


def test_a_feature_of_unrewarded_completions_separates_as_well() -> None:
    """Strength counts, not sign; layers are told apart."""
    completions = [completion(i, REWARDED if i % 2 else UNREWARDED) for i in range(20)]
    records = [record(i, {3: 1.0}, layer=2) for i in range(0, 20, 2)]
    records += [record(i, {3: 1.0}, layer=0) for i in range(15)]
    best, other = separating_features(records, completions)
    assert (best.layer_index, best.feature) == (2, 3)
    assert best.correlation == pytest.approx(-1.0)
    assert abs(other.correlation) < 0.2


def test_rare_features_are_left_out() -> None:
    """A feature that fired in too few completions is no finding, however well it fits."""
    completions = [completion(i, REWARDED if i < 9 else UNREWARDED) for i in range(20)]
    records = [record(i, {7: 1.0}) for i in range(9)]
    assert separating_features(records, completions, min_support=10) == ()
    assert len(separating_features(records, completions, min_support=9)) == 1


def test_groups_of_equals_say_nothing() -> None:
    """Completions that earned what their group did are neither rewarded nor unrewarded."""
    judged = [completion(i, REWARDED if i % 2 else UNREWARDED) for i in range(20)]
    equal = [completion(i, EQUAL) for i in range(20, 40)]
    records = [record(i, {7: 1.0 + i % 3}) for i in range(40)]
    assert separating_features(records, judged + equal) == separating_features(records, judged)


def test_records_without_a_completion_are_ignored() -> None:
    """A record that joins no known completion changes nothing."""
    completions = [completion(i, REWARDED if i % 2 else UNREWARDED) for i in range(20)]
    stray = SAELogRecord(
        step=1,
        token_index=0,
        layer_index=0,
        top_feature_indices=(7,),
        top_feature_activations=(1.0,),
        reconstruction_loss=0.0,
    )
    assert separating_features([stray] * 20 + [record(99, {7: 1.0})] * 20, completions) == ()


def test_an_empty_log_has_no_features() -> None:
    """Nothing recorded, nothing found."""
    assert separating_features([], []) == ()


@given(
    rows=st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({value for value, _ in rows}) > 1 and len({flag for _, flag in rows}) > 1
    )
)
def test_the_contrast_is_pearsons_correlation(rows: list[tuple[int, bool]]) -> None:
    """The point-biserial formula equals numpy's correlation with the 0/1 class."""
    values = {(1, i): value / 10 for i, (value, _) in enumerate(rows) if value}
    rewarded = {(1, i): flag for i, (_, flag) in enumerate(rows)}
    expected = np.corrcoef(np.array(rows, dtype=float).T)[0, 1]
    assert contrast((0, 0), values, rewarded).correlation == pytest.approx(expected, abs=1e-9)


def test_a_constant_feature_separates_nothing() -> None:
    """Rounding errors of equal activations are not taken for a difference."""
    rewarded = {(1, i): i % 3 == 0 for i in range(11)}
    assert contrast((0, 0), dict.fromkeys(rewarded, 0.1), rewarded).correlation == 0.0
