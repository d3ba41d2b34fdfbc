"""Cells, put together to grids."""

from __future__ import annotations

from collections.abc import Sequence

from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.response import CellEvent, Extreme, HookGrid, Skipped

__all__ = ["Grids", "less_is_better"]

_LESS_IS_BETTER = ("kl", "rank")


class Grids:
    """Cells put in their places, in any order.

    Args:
        hooks: names of the hooks.
        layers: rows.
        positions: columns.
        metric: what the cells hold.
    """

    def __init__(
        self,
        hooks: Sequence[str],
        layers: Sequence[int],
        positions: Sequence[int],
        *,
        metric: MetricName,
    ) -> None:
        self._hooks, self._layers, self._positions = hooks, layers, positions
        self._sign = -1.0 if less_is_better(metric) else 1.0
        self._cells: dict[tuple[str, int, int], CellEvent] = {}

    def add(self, cell: CellEvent) -> None:
        """Put a cell in its place."""
        self._cells[cell.hook, cell.layer, cell.position] = cell

    def failed(self) -> tuple[Skipped, ...]:
        """Return the cells that failed, in the order of the grids."""
        return tuple(
            Skipped(position=cell.position, reason=cell.error, hook=hook, layer=cell.layer)
            for hook in self._hooks
            for row in self._rows(hook)
            for cell in row
            if cell is not None and cell.error is not None
        )

    def hook_grid(self, hook: str) -> HookGrid:
        """Return the grid of a hook."""
        rows = self._rows(hook)
        return HookGrid(
            hook=hook,
            grid=tuple(
                tuple(cell.value if cell is not None else None for cell in row) for row in rows
            ),
            argmax=self._extreme(hook),
            below_noise=tuple(
                tuple(cell is not None and cell.below_noise for cell in row) for row in rows
            ),
        )

    def _rows(self, hook: str) -> list[list[CellEvent | None]]:
        return [
            [self._cells.get((hook, layer, position)) for position in self._positions]
            for layer in self._layers
        ]

    def _extreme(self, hook: str) -> Extreme | None:
        cells = (cell for row in self._rows(hook) for cell in row if cell is not None)
        valued = [(cell, cell.value) for cell in cells if cell.value is not None]
        if not valued:
            return None
        cell, value = max(valued, key=lambda pair: self._sign * pair[1])
        return Extreme(layer=cell.layer, position=cell.position, value=value)


def less_is_better(metric: MetricName) -> bool:
    """Return whether a smaller value means that more of the clean run was brought back."""
    return metric in _LESS_IS_BETTER
