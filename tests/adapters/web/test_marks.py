from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.marks import (
    COLUMNS,
    HeatCell,
    Marks,
    RewardPoint,
    no_marks,
    table_of_marks,
)

steps = st.integers(0, 10_000)
cells = st.lists(
    st.builds(HeatCell, steps, st.sampled_from([0, 4, 20]), st.integers(1, 9), st.floats(0, 9)),
    max_size=60,
)
points = st.lists(
    st.builds(RewardPoint, steps, st.floats(-1, 1)), max_size=60, unique_by=lambda p: p.step
)


def everything(marks: Marks) -> list[dict[str, Any]]:
    """Return the rows."""
    return [dict(zip(marks, row, strict=True)) for row in zip(*marks.values(), strict=True)]


def rows(marks: Marks, mark: str) -> list[dict[str, Any]]:
    """Return the rows of one kind."""
    return [row for row in everything(marks) if row["mark"] == mark]


@given(cells, points, st.integers(2, 50))
def test_binning_keeps_every_record_and_bounds_the_table(
    cells: list[HeatCell], points: list[RewardPoint], max_bins: int
) -> None:
    """However long the run, at most so many bins; their counts add up to all records."""
    marks = table_of_marks(cells, points, max_bins=max_bins)

    drawn = rows(marks, "cell")
    assert sum(row["count"] for row in drawn) == sum(cell.count for cell in cells)
    assert len({row["x0"] for row in drawn}) <= max_bins
    assert len(rows(marks, "reward")) <= max_bins
    assert sum(row["value"] * row["count"] for row in drawn) == pytest.approx(
        sum(cell.total for cell in cells)
    )


@given(cells)
def test_rows_of_layers_touch_and_do_not_overlap(cells: list[HeatCell]) -> None:
    """Each layer lies within its own row, and the rows fill the axis."""
    boxes = sorted(
        {(r["y0"], r["layer"], r["y1"]) for r in rows(table_of_marks(cells, []), "cell")}
    )

    assert all(low < layer < high for low, layer, high in boxes)
    assert all(below[2] == above[0] for below, above in pairwise(boxes))


@given(points)
def test_the_reward_line_is_unbroken(points: list[RewardPoint]) -> None:
    """Every piece of the line begins where the one before it ended."""
    pieces = rows(table_of_marks([], points), "reward")

    assert all((a["x1"], a["y1"]) == (b["x0"], b["y0"]) for a, b in pairwise(pieces))


def test_a_short_run_is_shown_step_by_step() -> None:
    """Without need there is no binning: a cell is a step wide and holds the mean."""
    marks = table_of_marks([HeatCell(3, 0, 4, 10.0)], [RewardPoint(3, 0.5, 0.25)])

    [cell], [band], [line] = (rows(marks, kind) for kind in ("cell", "band", "reward"))
    assert (cell["x0"], cell["x1"], cell["y0"], cell["y1"]) == (2.5, 3.5, -0.5, 0.5)
    assert (cell["value"], cell["count"]) == (2.5, 4)
    assert (band["y0"], band["y1"]) == (0.25, 0.75)
    assert (line["x1"], line["y1"]) == (3, 0.5)


def test_what_is_not_finite_is_left_out() -> None:
    """An infinite activation or an undefined reward leaves a hole and not a broken chart."""
    cells = [HeatCell(1, 0, 2, math.inf), HeatCell(2, 0, 2, 4.0)]
    points = [RewardPoint(1, math.nan), RewardPoint(2, 0.5, math.nan), RewardPoint(3, 0.5)]

    marks = table_of_marks(cells, points)

    assert [(row["mark"], row["step"]) for row in everything(marks)] == [
        ("cell", 2),
        ("band", 3),
        ("reward", 3),
    ]


def test_nothing_is_an_empty_table() -> None:
    """Before the first record every column is there, and empty."""
    assert table_of_marks([], []) == no_marks() == {name: [] for name in COLUMNS}
