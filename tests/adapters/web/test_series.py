from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.series import MOST_VALUES, Series
from aegir_stream.events import StepMetrics
from aegir_stream.views import StepMetricsView

steps = st.integers(0, 60) | st.integers(0, 5_000) | st.integers(-(2**63), 2**63 - 1)
values = st.none() | st.floats() | st.sampled_from([0.0, 1.0, -1.0])
told = st.lists(st.tuples(steps, values), max_size=300)
in_order = st.lists(values, max_size=400)


def put_all(pairs: list[tuple[int, float | None]], *, most: int = MOST_VALUES) -> Series:
    """Return a series of what was told, in its order."""
    series = Series(most)
    for step, value in pairs:
        series.put(step, value)
    return series


def folded(pairs: list[tuple[int, float | None]]) -> dict[int, float | None]:
    """Return what the view of the core keeps: everything."""
    view = StepMetricsView()
    events = [StepMetrics(step=step, ts=0.0, metrics={"a": value}) for step, value in pairs]
    return view.fold(view.initial(), events).values.get("a", {})


def finite(points: object) -> list[tuple[int, float]]:
    """Return the points that have a finite value."""
    return [(s, v) for s, v in points if v is not None and math.isfinite(v)]  # type: ignore[attr-defined]


@given(told)
def test_a_short_series_is_kept_whole(pairs: list[tuple[int, float | None]]) -> None:
    """In the order of its steps, the last value of each."""
    series = put_all(pairs)

    everything = folded(pairs)
    assert finite(series.points()) == finite(sorted(everything.items()))
    assert len(series) == len(everything)


@given(told)
def test_what_is_kept_of_a_long_series_is_what_counts(
    pairs: list[tuple[int, float | None]],
) -> None:
    """Whatever was told anew, out of order or not at all, no value is shown that is void."""
    series = put_all(pairs, most=32)

    everything = folded(pairs)
    points = series.points()
    assert len(points) <= 32
    assert all(left[0] < right[0] for left, right in pairwise(points))
    for step, value in points:
        known = everything[int(step)]
        assert value is not None
        assert repr(value) == repr(math.nan if known is None else known)


@given(in_order)
def test_a_long_series_keeps_its_ends_and_its_extremes(column: list[float | None]) -> None:
    """The first, the last, the lowest and the highest value are never thinned away."""
    pairs = list(enumerate(column))
    shown, whole = finite(put_all(pairs, most=32).points()), finite(pairs)

    assert (shown[:1], shown[-1:]) == (whole[:1], whole[-1:])
    heights = {value for _, value in shown}
    assert not whole or {min(v for _, v in whole), max(v for _, v in whole)} <= heights


@given(in_order)
def test_a_line_is_broken_where_a_value_is_missing(column: list[float | None]) -> None:
    """Two values that are kept are joined if, and only if, none is missing between them."""
    missing = [
        step for step, value in enumerate(column) if value is None or not math.isfinite(value)
    ]
    points = put_all(list(enumerate(column)), most=32).points()

    last: int | None = None
    broken = False
    for step, value in points:
        if value is not None and math.isfinite(value):
            if last is not None:
                assert broken == any(last < gap < step for gap in missing)
            last, broken = int(step), False
        else:
            broken = True


@given(told)
def test_the_newest_value_is_that_of_the_view(pairs: list[tuple[int, float | None]]) -> None:
    """The one that alarms are judged by, also where it is no number."""
    kept = [pair for pair in pairs if pair[1] is None or math.isfinite(pair[1])]
    newest = put_all(kept).newest

    known = [(step, value) for step, value in sorted(folded(kept).items()) if value is not None]
    assert newest == (known[-1] if known else None)


def test_a_value_that_is_no_number_is_the_newest() -> None:
    """It breaks the line and raises the alarm."""
    series = put_all([(1, 0.5), (2, math.nan), (3, None)])

    assert repr(series.newest) == "(2, nan)"


def test_a_hundred_thousand_values_are_few() -> None:
    """Memory does not grow with the run."""
    series = Series()
    for step in range(100_000):
        series.put(step, math.sin(step / 9_000))

    assert len(series) <= MOST_VALUES
    assert series.newest == (99_999, math.sin(99_999 / 9_000))

    points = series.points()
    gaps = [right[0] - left[0] for left, right in pairwise(points)]
    assert len(points) > MOST_VALUES // 8
    assert max(gaps) < 1_000
