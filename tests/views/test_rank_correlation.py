from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aegir_stream.views.rank_correlation import RankedRewards, midranks, spearman

stats = pytest.importorskip("scipy.stats")

values = st.one_of(st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, -1.0]), st.floats(-5, 5, width=16))
pairs = st.lists(st.tuples(values, values), min_size=4, max_size=40)


@given(st.lists(values, max_size=30))
def test_equal_values_share_their_mean_rank(listed: list[float]) -> None:
    """Ranks are scipy's averages."""
    assert midranks(listed) == list(stats.rankdata(listed)) if listed else not midranks(listed)


@given(pairs)
def test_rho_and_its_p_value_are_scipys(listed: list[tuple[float, float]]) -> None:
    """With ties, with negative activations, with mostly zeros."""
    left, right = zip(*listed, strict=True)
    found = spearman(left, right)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert found is None
        return
    assert found is not None
    expected = stats.spearmanr(left, right)
    assert found.rho == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.n == len(listed)


@given(pairs)
def test_the_interval_is_bonett_and_wrights(listed: list[tuple[float, float]]) -> None:
    """Fisher's z, with a standard error that grows with rho."""
    found = spearman(*zip(*listed, strict=True), level=0.9)
    assume(found is not None and abs(found.rho) < 1)
    assert found is not None
    error = math.sqrt((1 + found.rho**2 / 2) / (found.n - 3))
    for end, z in ((found.low, -1.6448536269514722), (found.high, 1.6448536269514722)):
        assert math.atanh(end) == pytest.approx(math.atanh(found.rho) + z * error, abs=1e-9)


def test_a_perfect_order_has_no_interval() -> None:
    """Where Fisher's z is infinite, both ends are rho."""
    found = spearman([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    assert found is not None
    assert (found.rho, found.low, found.high, found.p_value) == (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("rewards", [[], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
def test_nothing_is_told_of_too_few_pairs_or_of_equal_ones(rewards: list[float]) -> None:
    """Three pairs have no interval, and equal rewards no order."""
    assert RankedRewards(rewards).against([(0, 1.0)] if rewards else []) is None
