from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.amounts import UNKNOWN, age, count, date, duration, number
from aegir_adapters.web.live import live_of
from aegir_adapters.web.sparkline import MARGIN, WIDTH, sparkline
from aegir_stream.standing import RunStanding

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def facts(standing: RunStanding) -> dict[str, str]:
    """Return the headline figures."""
    return dict(live_of(standing).facts)


def test_a_run_that_goes_on_has_time_left() -> None:
    """While it goes on, its viewer tells how long it will take."""
    told = facts(RunStanding(status="active", iteration=40, total=100, remaining_s=3900.0, rate=65))

    assert told["Iteration"] == "40 of 100"
    assert told["Time left"] == "1 h 5 min"
    assert told["Per iteration"] == "1 min 5 s"


@pytest.mark.parametrize("status", ["crashed", "stalled"])
def test_a_run_that_does_not_go_on_has_no_time_left(status: str) -> None:
    """What is gone or silent will not be done at its old rate."""
    standing = RunStanding(status=status, remaining_s=3900.0)  # type: ignore[arg-type]

    assert facts(standing)["Time left"] == UNKNOWN
    assert live_of(standing).note


def test_a_run_that_has_ended_took_its_time() -> None:
    """In the end its viewer tells how long it took; not where the clock was set back."""
    took = facts(RunStanding(status="finished", started_at=1000.0, ended_at=1075.0))
    wrong = facts(RunStanding(status="finished", started_at=1000.0, ended_at=900.0))

    assert took["Took"] == "1 min 15 s"
    assert wrong["Took"] == UNKNOWN


@pytest.mark.parametrize(
    ("ending", "note"), [("finished", None), (None, None), ("failed", "It ended as failed.")]
)
def test_an_end_that_is_no_success_is_told(ending: str | None, note: str | None) -> None:
    """The badge says finished either way; a sentence says how."""
    assert live_of(RunStanding(status="finished", ending=ending)).note == note


def test_the_figures_are_always_the_same_ones() -> None:
    """What is unknown has its place too, so that a page can be updated in place."""
    nothing = live_of(RunStanding(status="active")).facts
    much = live_of(RunStanding(status="active", iteration=1, best=2.0, cost=3.0, calls=4.0)).facts

    assert [term for term, _ in nothing] == [term for term, _ in much]
    assert {text for _, text in nothing} == {UNKNOWN}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, UNKNOWN), (0, "0"), (0.123456, "0.1235"), (-1234.5, "-1,234"), (1e300, "1e+300")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    """Four digits, and the thousands apart."""
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, UNKNOWN), (1234567.0, "1,234,567"), (1.5, "1.5"), (1e300, "1e+300")]
)
def test_counts_are_whole(value: float | None, text: str) -> None:
    """All digits of what can be counted."""
    assert count(value) == text


@given(FINITE)
def test_every_finite_number_has_a_text(value: float) -> None:
    """Nothing that a feed can hold breaks a page."""
    texts = [number(value), count(value), duration(abs(value)), age(value), date(value)]

    assert all(texts)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63), FINITE), max_size=200))
def test_a_sparkline_stays_inside(curve: list[tuple[float, float]]) -> None:
    """Whatever the scores are, every point is on the drawing."""
    drawn = sparkline(curve)

    path = drawn.partition('d="M')[2].partition('"')[0]
    places = [float(x) for point in path.split("L") if point for x in point.split()]
    assert bool(drawn) == (len(curve) > 1)
    assert all(math.isfinite(x) and MARGIN <= x <= WIDTH - MARGIN for x in places)
