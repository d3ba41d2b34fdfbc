from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.views.distributions import (
    normal_quantile,
    normal_two_sided,
    t_quantile,
    t_two_sided,
)
from aegir_stream.views.multiplicity import adjust

stats = pytest.importorskip("scipy.stats")

degrees = st.one_of(st.integers(1, 30), st.integers(31, 100_000))


@given(st.floats(-35, 35))
def test_the_normal_tail_is_scipys(z: float) -> None:
    """Down to the least that a float holds."""
    assert normal_two_sided(z) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-12, abs=1e-300)


@given(st.floats(-60, 60), degrees)
def test_the_tail_of_t_is_scipys(t: float, df: int) -> None:
    """In the middle and far out, for few degrees of freedom and for many."""
    assert t_two_sided(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-8, abs=1e-290)


def test_an_infinite_t_has_no_tail() -> None:
    """Where nothing varies, the probability is 0 and no error."""
    assert t_two_sided(float("inf"), 3) == 0.0
    assert t_two_sided(0.0, 3) == 1.0


@given(st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]), degrees)
def test_quantiles_are_scipys(level: float, df: int) -> None:
    """The ends between which t lies with the probability that was asked for."""
    assert t_quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)
    assert normal_quantile(level) == pytest.approx(stats.norm.ppf((1 + level) / 2), rel=1e-9)


@given(st.lists(st.floats(0, 1), max_size=40))
def test_adjusted_p_values_are_scipys(p_values: list[float]) -> None:
    """Benjamini and Hochberg's step-up procedure, in the order of what was given, ties included."""
    expected = stats.false_discovery_control(p_values, method="bh") if p_values else []
    assert adjust(p_values) == pytest.approx(list(expected), rel=1e-12)
