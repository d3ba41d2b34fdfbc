"""How much work a sweep is, and how much it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aegir_adapters.patching.cells import Cell, Grid, Job
from aegir_adapters.patching.chunks import Chunk, Rider
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import SweepCounts
from aegir_adapters.patching.setting import Setting

__all__ = ["Counting"]


class Counting:
    """Counts the token-layers of a sweep.

    Args:
        model: the model.
        setting: the unpatched runs.
        grids: what is swept.
        free: cells that cost nothing.
        jobs: what the others need.
        chunks: the jobs that are computed; the others are estimated.
        slopes: metrics whose gradients were taken.
    """

    def __init__(
        self,
        model: PatchableModel,
        setting: Setting,
        grids: Sequence[Grid],
        *,
        free: Sequence[Cell],
        jobs: Sequence[Job],
        chunks: Sequence[Chunk],
        slopes: int,
    ) -> None:
        self._model = model
        self._setting = setting
        self._grids = grids
        self._free = len(free)
        self._jobs = jobs
        self._chunks = chunks
        self._slopes = slopes

    def counts(self, *, done: bool = False) -> SweepCounts:
        """Return how much work the sweep is, or how much it was."""
        computed = [job for chunk in self._chunks for job in chunk.jobs]
        riders = self._cost(rider for chunk in self._chunks for rider in chunk.riders)
        total = self._free + sum(len(job.cells) for job in self._jobs)
        naive = sum(len(grid.cells()) * self._tokens(grid) for grid in self._grids)
        return SweepCounts(
            total=total,
            free=self._free,
            computed=len(computed),
            deduplicated=total - self._free - len(self._jobs),
            token_layers=self._entered() - riders if done else self._cost(computed),
            token_layers_naive=naive * self._model.num_layers,
            token_layers_riders=riders,
            token_layers_baselines=self._setting.token_layers + self._previews(),
            estimated=len(self._jobs) - len(computed),
        )

    def _previews(self) -> int:
        """Return what the gradients took: a forward, and a backward for each metric."""
        if not self._slopes:
            return 0
        tokens = sum(self._tokens(grid) for grid in self._grids)
        return (1 + 2 * self._slopes) * tokens * self._model.num_layers

    def _entered(self) -> int:
        """Return how many rows have entered a layer."""
        return sum(stage.engine.token_layers for stage in self._setting.stages.values())

    def _tokens(self, grid: Grid) -> int:
        return sum(lane.length for lane in grid.lanes)

    def _cost(self, units: Iterable[Job | Rider]) -> int:
        return sum(
            self._setting.stages[lane.length].engine.cost(
                patch, num_layers=self._model.num_layers, length=lane.length
            )
            for unit in units
            for lane, patch in zip(self._grids[unit.pair].lanes, unit.patches, strict=True)
        )
