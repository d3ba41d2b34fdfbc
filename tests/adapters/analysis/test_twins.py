from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_adapters.analysis import ArrayFeatureRewardView, ArrayFiringView
from aegir_stream.views import FeatureRewardView, FiringView, rank_features
from views.features import interleaved, lanes, seeded
from views.policies import PLANTED, planted

seeds = st.integers(0, 2**32)


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number in a state with the way to it."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, dict):
        for key in sorted(value):
            yield from numbers(value[key], f"{path}.{key}")
    elif isinstance(value, str) or not hasattr(value, "__iter__"):
        yield path, value
    else:
        for index, item in enumerate(value):
            yield from numbers(item, f"{path}.{index}")


def assert_alike(one: Any, other: Any) -> None:
    """Compare two states number by number, up to the rounding of sums."""
    left, right = dict(numbers(one)), dict(numbers(other))
    assert left.keys() == right.keys()
    for path, value in left.items():
        if isinstance(value, float):
            assert math.isclose(value, right[path], rel_tol=1e-9, abs_tol=1e-9), path
        else:
            assert value == right[path], path


@settings(max_examples=150)
@given(seeds, st.sampled_from(["mean", "share", "presence"]), st.integers(0, 3))
def test_arrays_give_the_totals_of_the_core(seed: int, summary: Any, lag: int) -> None:
    """In any batching and interleaving, with whatever may be missing: sums, control and sample."""
    draw = seeded(seed)
    log = lanes(draw)
    options: dict[str, Any] = {"summary": summary, "reservoir": 7}
    pure = FeatureRewardView(**options, lag=lag)
    expected = pure.fold(pure.initial(), interleaved(log, draw))
    arrays = ArrayFeatureRewardView(**options, lag=lag)
    order = interleaved(log, draw)
    cut = draw.randint(0, len(order))
    found = arrays.fold(arrays.fold(arrays.initial(), order[:cut]), order[cut:])
    assert_alike(arrays.totals(found), pure.totals(expected))
    assert found.joining.settled == expected.joining.settled
    assert found.joining.late == expected.joining.late
    assert found.joining.non_finite == expected.joining.non_finite
    assert set(found.fired) <= set(found.joining.steps)


@settings(max_examples=150)
@given(seeds, st.sampled_from([None, 1, 2]))
def test_arrays_give_the_rates_of_the_core(seed: int, width: int | None) -> None:
    """Windows, their widening, first and last steps."""
    draw = seeded(seed)
    log = lanes(draw, most_steps=9)
    pure, arrays = (
        FiringView(width=width, most_windows=3),
        ArrayFiringView(width=width, most_windows=3),
    )
    order = interleaved(log, draw)
    cut = draw.randint(0, len(order))
    found = arrays.fold(arrays.fold(arrays.initial(), order[:cut]), order[cut:])
    expected = pure.fold(pure.initial(), interleaved(log, draw))
    state = found.state()
    # A layer in which no latent fired was seen all the same.
    assert {k: v for k, v in state.seen.items() if v} == {
        k: v for k, v in expected.seen.items() if v
    }
    assert_alike(state.layers, expected.layers)
    assert (state.width, state.non_finite) == (expected.width, expected.non_finite)


def test_what_comes_late_is_late_in_both() -> None:
    """A rank that was forgotten: its records of a settled step are counted, and not folded."""
    events = planted(0, steps=9)
    late = events[1:6]
    for view in (FeatureRewardView(reservoir=5), ArrayFeatureRewardView(reservoir=5)):
        state: Any = view.fold(view.initial(), events)  # type: ignore[arg-type]
        before = view.totals(state)
        state = view.fold(state, late)
        assert state.joining.late == len(late)
        assert view.totals(state) == before
        assert set(getattr(state, "fired", ())) <= set(state.joining.steps)


def test_totals_leave_the_state_as_it_is() -> None:
    """Asking twice gives the same, and what comes later is added once."""
    events = planted(1, steps=6)
    view = ArrayFeatureRewardView()
    state = view.fold(view.initial(), events[:400])
    assert view.totals(state) == view.totals(state)
    whole = view.fold(view.initial(), events)
    assert_alike(view.totals(view.fold(state, events[400:])), view.totals(whole))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_latent_is_ranked_first(seed: int) -> None:
    """The table does not tell where its totals come from."""
    view = ArrayFeatureRewardView()
    table = rank_features(view.totals(view.fold(view.initial(), planted(seed))))
    assert table.rows[0].latent == PLANTED
    assert table.found >= 1
