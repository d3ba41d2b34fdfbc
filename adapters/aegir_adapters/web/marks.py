"""What the charts of the first page show, as one table of marks. Pure.

One table, because a page may hold few connections (browsers allow six per host): the heat map,
the reward curve and its band share one stream, each row saying to which of them it belongs. Time
is binned on the server, so the table stays small however long the run is, and every message
replaces the whole table, so a client that connects again shows nothing twice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

__all__ = ["COLUMNS", "HeatCell", "Marks", "RewardPoint", "no_marks", "table_of_marks"]

MAX_BINS = 240

Marks = dict[str, list[object]]
"""Column name to values, all columns equally long."""

COLUMNS = ("mark", "step", "layer", "x0", "x1", "y0", "y1", "value", "count")
"""`mark` is `cell`, `band` or `reward`; a cell and a band fill the box from (x0, y0) to (x1, y1),
a reward is the line from the previous point (x0, y0) to this one (x1, y1)."""


class HeatCell(msgspec.Struct, frozen=True):
    """The top activations of one layer in one step: how many, and their sum."""

    step: int
    layer: int
    count: int
    total: float


class RewardPoint(msgspec.Struct, frozen=True):
    """The reward of one step: mean and standard deviation over completions."""

    step: int
    mean: float
    std: float = 0.0


def table_of_marks(
    cells: Sequence[HeatCell], points: Sequence[RewardPoint], *, max_bins: int = MAX_BINS
) -> Marks:
    """Return everything that the charts show, with time in at most `max_bins` bins.

    What is not finite has no place on an axis and is left out.
    """
    cells = [cell for cell in cells if math.isfinite(cell.total)]
    points = [point for point in points if math.isfinite(point.mean + point.std)]
    width = _bin_width([*(cell.step for cell in cells), *(p.step for p in points)], max_bins)
    rows = [*_cell_rows(cells, width), *_reward_rows(points, width)]
    return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def no_marks() -> Marks:
    """Return the table before anything happened."""
    return {name: [] for name in COLUMNS}


def _bin_width(steps: Sequence[int], max_bins: int) -> int:
    span = max(steps) - min(steps) + 1 if steps else 1
    # One more than needed, since the bins are aligned to multiples of the width and not to the
    # first step: aligned bins keep their borders while the run grows.
    return 1 if span <= max_bins else -(-span // (max_bins - 1))


def _cell_rows(cells: Iterable[HeatCell], width: int) -> list[tuple[object, ...]]:
    counts: dict[tuple[int, int], int] = defaultdict(int)
    totals: dict[tuple[int, int], float] = defaultdict(float)
    for cell in cells:
        place = cell.step - cell.step % width, cell.layer
        counts[place] += cell.count
        totals[place] += cell.total
    boxes = _layer_boxes(sorted({layer for _, layer in counts}))
    return [
        (
            "cell",
            step,
            layer,
            *_span(step, width),
            *boxes[layer],
            totals[step, layer] / count,
            count,
        )
        for (step, layer), count in sorted(counts.items())
        if count
    ]


def _reward_rows(points: Iterable[RewardPoint], width: int) -> list[tuple[object, ...]]:
    bins: dict[int, list[RewardPoint]] = defaultdict(list)
    for point in points:
        bins[point.step - point.step % width].append(point)
    bands: list[tuple[object, ...]] = []
    lines: list[tuple[object, ...]] = []
    previous: tuple[float, float] | None = None
    for step, members in sorted(bins.items()):
        mean = sum(p.mean for p in members) / len(members)
        std = sum(p.std for p in members) / len(members)
        here = step + (width - 1) / 2, mean
        bands.append(("band", step, 0, *_span(step, width), mean - std, mean + std, std, 0))
        (x0, y0), (x1, y1) = previous or here, here
        lines.append(("reward", step, 0, x0, x1, y0, y1, mean, len(members)))
        previous = here
    return bands + lines


def _span(step: int, width: int) -> tuple[float, float]:
    return step - 0.5, step + width - 0.5


def _layer_boxes(layers: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return the lower and upper border of each layer's row: half way to its neighbours."""
    if len(layers) <= 1:
        return {layer: (layer - 0.5, layer + 0.5) for layer in layers}
    between = [(low + high) / 2 for low, high in pairwise(layers)]
    borders = [2 * layers[0] - between[0], *between, 2 * layers[-1] - between[-1]]
    return dict(zip(layers, pairwise(borders), strict=True))
