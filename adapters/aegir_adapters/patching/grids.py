"""Cells, put together to grids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import msgspec

from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.reading import mean
from aegir_adapters.patching.response_parts import Extreme, HookGrid

__all__ = ["Grids", "Place", "PlacedCell", "less_is_better"]

_LESS_IS_BETTER = ("kl", "rank")


class Place(NamedTuple):
    """Where a cell is.

    Attributes:
        pair: index of the prompt pair.
        hook: name of the hook.
        layer: the row.
        label: what the column is called.
    """

    pair: int
    hook: str
    layer: int
    label: int


class PlacedCell(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a place.

    Attributes:
        values: one for each metric, in its grid's unit.
        quiet: for each metric, whether it is below the noise.
        error: why the cell failed.
    """

    values: tuple[float | None, ...]
    quiet: tuple[bool, ...]
    error: str | None = None


class Grids:
    """Cells put in their places, in any order.

    Args:
        hooks: names of the hooks.
        layers: rows.
        labels: columns.
        metrics: what the cells hold.
        pairs: how many prompt pairs there are.
    """

    def __init__(
        self,
        hooks: Sequence[str],
        layers: Sequence[int],
        labels: Sequence[int],
        *,
        metrics: Sequence[MetricName],
        pairs: int = 1,
    ) -> None:
        self._hooks, self._layers, self._labels = hooks, layers, labels
        self._metrics = metrics
        self._pairs = range(pairs)
        self._cells: dict[Place, PlacedCell] = {}

    def add(self, place: Place, cell: PlacedCell) -> None:
        """Put a cell in its place."""
        self._cells[place] = cell

    def failed(self) -> Iterator[tuple[Place, str]]:
        """Yield the cells that failed, and why, pair by pair in the order of the grids."""
        for where in product(self._pairs, self._hooks, self._layers, self._labels):
            cell = self._cells.get(Place(*where))
            if cell is not None and cell.error is not None:
                yield Place(*where), cell.error

    def hook_grid(self, hook: str, *, metric: int = 0, pair: int | None = None) -> HookGrid:
        """Return the grid of a hook.

        Args:
            hook: its name.
            metric: index of the metric.
            pair: of which prompt pair; the mean over all of them by default.
        """
        rows = [self._row(hook, layer, pair) for layer in self._layers]
        grid = tuple(tuple(_mean(cells, metric) for cells in row) for row in rows)
        return HookGrid(
            hook=hook,
            grid=grid,
            argmax=self._extreme(grid, self._metrics[metric]),
            below_noise=tuple(tuple(_all_quiet(cells, metric) for cells in row) for row in rows),
        )

    def _row(self, hook: str, layer: int, pair: int | None) -> list[list[PlacedCell | None]]:
        """Return, for each column, the cells of all pairs that are asked for."""
        pairs = self._pairs if pair is None else (pair,)
        return [
            [self._cells.get(Place(one, hook, layer, label)) for one in pairs]
            for label in self._labels
        ]

    def _extreme(
        self, grid: Sequence[Sequence[float | None]], metric: MetricName
    ) -> Extreme | None:
        sign = -1.0 if less_is_better(metric) else 1.0
        valued = [
            Extreme(layer=layer, position=label, value=value)
            for layer, row in zip(self._layers, grid, strict=True)
            for label, value in zip(self._labels, row, strict=True)
            if value is not None
        ]
        return max(valued, key=lambda cell: sign * cell.value, default=None)


def less_is_better(metric: MetricName) -> bool:
    """Return whether a smaller value means that more of the clean run was brought back."""
    return metric in _LESS_IS_BETTER


def _mean(cells: Sequence[PlacedCell | None], metric: int) -> float | None:
    return mean([None if cell is None else cell.values[metric] for cell in cells])


def _all_quiet(cells: Sequence[PlacedCell | None], metric: int) -> bool:
    return all(cell is not None and cell.quiet[metric] for cell in cells)
