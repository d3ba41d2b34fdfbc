"""Further metrics of a sweep, each as the record of a sweep of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.recording import LOWER_IS_BETTER, ends_of
from aegir_adapters.patching.response import PatchSweepResponse
from aegir_adapters.patching.response_parts import MetricGrid
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import SweepCell, SweepEnded, SweepStarted
from aegir_stream.sweep_log import SweepLog
from aegir_stream.views import SweepGrids

__all__ = ["record_further_metrics"]

_Grids = Mapping[tuple[int, str], MetricGrid]
"""Of one metric, by pair and hook."""


def record_further_metrics(
    run: RunDirectory, grids: SweepGrids, response: PatchSweepResponse
) -> list[SweepStarted]:
    """Record every metric but the first, and return how the records begin.

    Args:
        run: takes the records.
        grids: what was recorded of the first metric, to its end.
        response: what the service answered.

    Raises:
        OSError: the disk did not take one.
    """
    made = []
    for record in _records(grids, response):
        with SweepLog(run, record.started) as log:
            log.append(record.cells)
            log.end(record.ended)
        made.append(log.started)
    return made


class _Record(NamedTuple):
    """A whole sweep of one metric."""

    started: SweepStarted
    cells: list[SweepCell]
    ended: SweepEnded


def _records(grids: SweepGrids, response: PatchSweepResponse) -> Iterator[_Record]:
    started, ended = grids.started, grids.ended
    assert started is not None  # noqa: S101 - it came to its end
    assert ended is not None  # noqa: S101 - likewise
    of_pairs = _metric_grids(response)
    metrics = dict.fromkeys(grid.metric for grid in of_pairs[0])
    for metric in [name for name in metrics if name != started.metric]:
        found = {
            (pair, grid.hook): grid
            for pair, every in enumerate(of_pairs)
            for grid in every
            if grid.metric == metric
        }
        floors = [grid.noise_floor for grid in found.values() if grid.noise_floor is not None]
        yield _Record(
            _started(started, metric, found),
            [_cell(cell, started, found) for cell in grids.cells.values()],
            replace(ended, best=(), noise_floor=max(floors, default=None), rank_correlation=None),
        )


def _metric_grids(response: PatchSweepResponse) -> Sequence[tuple[MetricGrid, ...]]:
    """Return the grids of every pair, or of the only one."""
    if response.pair_grids is None:
        return [response.metric_grids or ()]
    return [pair.metric_grids or () for pair in response.pair_grids]


def _started(started: SweepStarted, metric: MetricName, grids: _Grids) -> SweepStarted:
    own = [
        replace(pair, **_baselines(metric, grids[index, started.hooks[0]]))
        for index, pair in enumerate(started.pairs)
    ]
    return replace(
        started,
        metric=metric,
        lower_is_better=metric in LOWER_IS_BETTER,
        pairs=tuple(own),
        **_baselines(metric, grids[0, started.hooks[0]]),
    )


def _baselines(metric: MetricName, grid: MetricGrid) -> dict[str, float | None]:
    unpatched, restored = ends_of(metric, grid)
    return {
        "unpatched": unpatched,
        "restored": restored,
        "corrupt": grid.corrupt,
        "clean": grid.clean,
    }


def _cell(cell: SweepCell, started: SweepStarted, grids: _Grids) -> SweepCell:
    grid = grids[cell.pair, cell.hook]
    row, column = started.layers.index(cell.layer), started.positions.index(cell.position)
    return replace(cell, value=grid.grid[row][column], below_noise=grid.below_noise[row][column])
