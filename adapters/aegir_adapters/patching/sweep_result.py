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
    MetricGrid,
    PairGrid,
    PatchSweepResponse,
    Skipped,
)
from aegir_adapters.patching.results import Method
from aegir_stream.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

__all__ = ["SweepResult", "results_by_hook"]


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """The grid of one hook.

    Attributes:
        layers: rows of the grid.
        positions: columns of the grid: positions of the (first) prompt, or with groups the indices
            of `columns`.
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
        method: `attribution` if the values are estimates to first order.
        columns: names of the columns, if they are groups.
        column_positions: for each column, the positions that are patched together.
        tokens: what each token of the patched prompt spells; `None` without a tokenizer.
        pair: index of the prompt pair, if it is one of several; `None` for their mean.
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
    method: Method = "exact"
    columns: tuple[str, ...] | None = None
    column_positions: tuple[tuple[int, ...], ...] = ()
    tokens: tuple[str, ...] | None = None
    pair: int | None = None

    @property
    def unpatched(self) -> float | None:
        """What a cell holds where the patch changes nothing."""
        return 0.0 if self.metric_name.startswith("recovered") else self.corrupt

    @property
    def labels(self) -> tuple[str, ...]:
        """What the columns are called: names of groups, or tokens, or else positions."""
        if self.columns is not None:
            return self.columns
        if self.tokens is None:
            return tuple(map(str, self.positions))
        return tuple(self.tokens[position] for position in self.positions)

    def metric(self, name: MetricName) -> SweepResult:
        """Return the grid of the same hook, and prompt pair, for another of the sweep's metrics.

        Raises:
            OptionError: it was not measured.
        """
        measured = {grid.metric for grid in self.response.metric_grids or ()}
        if name not in {*measured, self.response.metric}:
            known = ", ".join(dict.fromkeys([self.response.metric, *sorted(measured)]))
            raise OptionError(
                f"Expected a metric that was measured: {known}, got {name}",
                hint="Sweep with metrics=[...], which takes no more computing",
            )
        return _result(self.response, self.hook, name, self.pair)

    def of_pair(self, pair: int) -> SweepResult:
        """Return the grid of the same hook and metric for one of several prompt pairs.

        Raises:
            OptionError: there is no such pair.
        """
        count = len(self.response.pair_grids or ())
        if not 0 <= pair < count:
            known = f"one of 0..{count - 1}" if count else "left out, for `pairs` were not swept"
            raise OptionError(
                f"Expected the index of a prompt pair to be {known}, got {pair}",
                hint="Pairs are counted in the order in which they were given",
            )
        return _result(self.response, self.hook, self.metric_name, pair)

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
        """Return the grid. Shape (layers, columns), float64, NaN for `None`."""
        import numpy as np  # noqa: PLC0415 - sweeps do without it

        return np.array(self.grid, dtype=np.float64)

    def heatmap(self, ax: Axes | None = None) -> Axes:
        """Draw the grid, and return what it is drawn on.

        Red brings more of the clean run back than there was, blue less. Cells below the noise are
        hatched, and those without a value grey.

        Args:
            ax: where to draw; a new figure by default.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            from aegir_adapters.patching.heatmap import draw  # noqa: PLC0415 - optional
        except ImportError as error:
            raise MissingExtraError("matplotlib", extra="patching") from error
        return draw(self, ax)


def results_by_hook(response: PatchSweepResponse) -> dict[str, SweepResult]:
    """Return the grids of an answer by the names of their hooks, the first hook first."""
    hooks = [grid.hook for grid in response.hook_grids or ()] or [response.hook]
    return {hook: _result(response, hook, response.metric, None) for hook in hooks}


def _result(
    response: PatchSweepResponse, hook: str, metric: MetricName, pair: int | None
) -> SweepResult:
    pairs = response.pair_grids or ()
    owner = response if pair is None else pairs[pair]
    grid = _grid(owner, hook, metric if metric != response.metric else None)
    told = grid if isinstance(grid, MetricGrid) else owner
    return SweepResult(
        layers=response.layers,
        positions=response.positions,
        hook=hook,
        metric_name=metric,
        grid=grid.grid,
        clean=told.clean,
        corrupt=told.corrupt,
        noise_floor=told.noise_floor,
        below_noise=grid.below_noise,
        skipped=tuple(
            one
            for one in response.skipped
            if one.hook in {None, hook} and (pair is None or one.pair == pair)
        ),
        auto_captured=owner.auto_captured,
        captured_source_run=owner.captured_source_run,
        response=response,
        method=response.method,
        columns=response.columns,
        column_positions=owner.column_positions,
        tokens=owner.tokens,
        pair=pair,
    )


def _grid(
    owner: PatchSweepResponse | PairGrid, hook: str, metric: MetricName | None
) -> HookGrid | MetricGrid:
    """Return the grid of a hook, for the first metric or another one."""
    if metric is not None:
        grids = owner.metric_grids or ()
        return next(grid for grid in grids if (grid.hook, grid.metric) == (hook, metric))
    if owner.hook_grids is not None:
        return next(grid for grid in owner.hook_grids if grid.hook == hook)
    return HookGrid(
        hook=owner.hook, grid=owner.grid, argmax=owner.argmax, below_noise=owner.below_noise
    )
