from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.trajectory import Trajectory

scores = st.none() | st.floats(width=32)
rows = st.lists(st.tuples(st.integers(-3, 60), scores), max_size=120)


def table_of(rows: list[tuple[int, float | None]]) -> list[tuple[int, float]]:
    """Return the points of a table filled in row by row."""
    return [(i, s) for i, s in sorted(dict(rows).items()) if s is not None and math.isfinite(s)]


@given(pieces=st.lists(rows, max_size=4), at_once=st.booleans())
def test_the_last_score_of_an_iteration_counts(
    pieces: list[list[tuple[int, float | None]]], *, at_once: bool
) -> None:
    """Whatever the order, the curve is that of a table, finite scores only, looked at or not."""
    trajectory, put = Trajectory(), []
    for piece in pieces:
        put += piece
        if at_once:
            trajectory.extend([i for i, _ in piece], [s for _, s in piece])
        else:
            for iteration, score in piece:
                trajectory.put(iteration, score)
        points = table_of(put)
        bests = [(i, s) for n, (i, s) in enumerate(points) if all(s > t for _, t in points[:n])]

        assert trajectory.curve() == points
        assert trajectory.bests == bests
        assert trajectory.best == max((s for _, s in points), default=None)
        assert len(trajectory) == len(points)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 40))
def test_a_thinned_curve_shows_the_whole_one(scores: list[float], most: int) -> None:
    """It has no more points than asked for, among them the ends, the lowest and the highest."""
    trajectory = Trajectory()
    trajectory.extend(range(len(scores)), scores)
    whole, thinned = trajectory.curve(), trajectory.curve(most=most)

    assert len(thinned) <= most
    assert set(thinned) <= set(whole)
    assert (thinned[0], thinned[-1]) == (whole[0], whole[-1])
    assert {s for _, s in thinned} >= {min(scores), max(scores)}


def test_iterations_in_reverse_are_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not put in front of all others one after the other, which takes minutes for a million."""
    placed: list[object] = []
    monkeypatch.setattr(Trajectory, "_place", lambda *given: placed.append(given))
    trajectory = Trajectory()
    for iteration in reversed(range(1_000)):
        trajectory.put(iteration, float(iteration))

    assert trajectory.curve() == [(iteration, float(iteration)) for iteration in range(1_000)]
    assert trajectory.best == 999.0
    assert not placed
