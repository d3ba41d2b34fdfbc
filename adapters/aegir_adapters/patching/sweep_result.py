"""The grid of one hook, as a client has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from aegir_adapters.patching.grids import less_is_better
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.response import (
    Extreme,
    Grid,
    HookGrid,
    PatchSweepResponse,
    Skipped,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SweepResult", "results_by_hook"]


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """The grid of one hook.

    Attributes:
        layers: rows of the grid.
        positions: columns of the grid.
        hook: name of the hook.
        metric_name: what the grid holds.
        grid: values; `None` where the metric is undefined or a cell failed.
        clean: of the clean prompt, what the metric is made of.
        corrupt: of the patched prompt, unpatched.
        noise_floor: how far unpatched rows strayed at most.
        below_noise: whether each cell strays no further than that.
        skipped: unaligned positions and failed cells.
        auto_captured: whether the source run was captured for this sweep.
        captured_source_run: its name, if it was.
        response: all of the answer; hooks of one sweep share it.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    hook: str
    metric_name: MetricName
    grid: Grid
    clean: float | None
    corrupt: float | None
    noise_floor: float | None
    below_noise: tuple[tuple[bool, ...], ...]
    skipped: tuple[Skipped, ...]
    auto_captured: bool
    captured_source_run: str | None
    response: PatchSweepResponse

    def argmax_cell(self) -> Extreme | None:
        """Return the best cell; `None` if no cell has a value."""
        return next(iter(self.top(1)), None)

    def top(self, k: int = 5) -> list[Extreme]:
        """Return the best cells, the best first."""
        cells = [
            Extreme(layer=layer, position=position, value=value)
            for layer, row in zip(self.layers, self.grid, strict=True)
            for position, value in zip(self.positions, row, strict=True)
            if value is not None
        ]
        sign = 1.0 if less_is_better(self.metric_name) else -1.0
        return sorted(cells, key=lambda cell: sign * cell.value)[:k]

    def to_numpy(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the grid. Shape (layers, positions), float64, NaN for `None`."""
        import numpy as np  # noqa: PLC0415 - sweeps do without it

        return np.array(self.grid, dtype=np.float64)


def results_by_hook(response: PatchSweepResponse) -> dict[str, SweepResult]:
    """Return the grids of an answer by the names of their hooks, the first hook first."""
    only = HookGrid(
        hook=response.hook,
        grid=response.grid,
        argmax=response.argmax,
        below_noise=response.below_noise,
    )
    grids = response.hook_grids if response.hook_grids is not None else (only,)
    return {grid.hook: _result(grid, response) for grid in grids}


def _result(grid: HookGrid, response: PatchSweepResponse) -> SweepResult:
    return SweepResult(
        layers=response.layers,
        positions=response.positions,
        hook=grid.hook,
        metric_name=response.metric,
        grid=grid.grid,
        clean=response.clean,
        corrupt=response.corrupt,
        noise_floor=response.noise_floor,
        below_noise=grid.below_noise,
        skipped=tuple(one for one in response.skipped if one.hook in (None, grid.hook)),
        auto_captured=response.auto_captured,
        captured_source_run=response.captured_source_run,
        response=response,
    )
