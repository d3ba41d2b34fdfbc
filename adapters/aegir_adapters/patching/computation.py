"""The computing behind one sweep, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType

from aegir_adapters.patching.attribution import estimate, ordering_metric, rank_correlation
from aegir_adapters.patching.cells import Cell, Grid, Job, lay_out
from aegir_adapters.patching.chunks import Chunk, Rider, in_chunks
from aegir_adapters.patching.counting import Counting
from aegir_adapters.patching.gradients import GradientError
from aegir_adapters.patching.lanes import Lane, lanes_of
from aegir_adapters.patching.measuring import Measuring
from aegir_adapters.patching.metrics import RAW, MetricName, raw_metrics
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import (
    CellBatch,
    CellResult,
    NoiseFloor,
    SweepBegin,
    SweepEnd,
)
from aegir_adapters.patching.scoring import Raw, Scale, scale_of
from aegir_adapters.patching.self_check import sites_for
from aegir_adapters.patching.setting import settle
from aegir_adapters.patching.spec import SweepSpec

__all__ = ["Computation"]

Floors = dict[MetricName, float]


class Computation:
    """Everything about one sweep that is known before its first chunk, and what came of the chunks.

    Args:
        model: the model.
        specs: the prompt pairs, checked.

    Attributes:
        chunks: what is to be computed, in order.

    Raises:
        OptionError: a source lacks something.
    """

    def __init__(self, model: PatchableModel, specs: Sequence[SweepSpec]) -> None:
        self._model = model
        self._specs = specs
        self._shared = specs[0]
        hooks = tuple(model.hook(name) for name in self._shared.hooks)
        self._lanes = [
            lanes_of(pair, spec.prompt_ids, spec.answer_ids, spec.foil_ids)
            for pair, spec in enumerate(specs)
        ]
        clean = [self._clean_lanes(pair, spec) for pair, spec in enumerate(specs)]
        self._setting = settle(
            model,
            list(chain.from_iterable(self._lanes)),
            list(chain.from_iterable(clean)),
            sites=sites_for(list(hooks)),
        )
        self._scales = [self._scale(pair, clean[pair]) for pair in range(len(specs))]
        self._grids = [
            Grid(
                pair=pair,
                lanes=self._lanes[pair],
                source=spec.source,
                hooks=hooks,
                layers=spec.layers,
                positions=spec.swept_positions(),
                alpha=spec.alpha,
            )
            for pair, spec in enumerate(specs)
        ]
        self._free, self._jobs = lay_out(model, self._setting, self._grids)
        self._changes = self._estimated()
        self.chunks = self._chunked()
        self._counting = Counting(
            model,
            self._setting,
            self._grids,
            free=self._free,
            jobs=self._jobs,
            chunks=self.chunks,
            slopes=len(self._changes[0]) if self._changes else 0,
        )
        self._measuring = Measuring(
            model, self._setting, self._scales, self._lanes, chunk_bytes=self._shared.chunk_bytes
        )
        self._floors: list[NoiseFloor] = []
        self._effects: list[tuple[float, float]] = []
        self._failed = 0

    def begin(self) -> SweepBegin:
        """Return what is known before the first cell."""
        return SweepBegin(
            hooks=self._shared.hooks,
            layers=self._shared.layers,
            positions=tuple(grid.positions for grid in self._grids),
            metrics=self._shared.metrics,
            baselines=tuple(scale.baselines() for scale in self._scales),
            counts=self._counting.counts(),
            engine=self._model.engine,
            engine_reason=self._model.engine_reason,
            method=self._shared.method,
            warnings=tuple(chain.from_iterable(scale.warnings() for scale in self._scales)),
        )

    def free_cells(self) -> CellBatch | None:
        """Return the cells that cost nothing, if there are any."""
        if not self._free:
            return None
        results = [
            self._result(cell, self._scales[cell.pair].corrupt, free=True) for cell in self._free
        ]
        return CellBatch(cells=tuple(results))

    def estimated_cells(self) -> CellBatch | None:
        """Return first-order estimates of all other cells, where these are what is asked for."""
        if self._shared.method == "exact" or not self._jobs:
            return None
        estimates = list(zip(self._jobs, self._changes, strict=True))
        if self._shared.order == "importance":
            estimates.sort(key=lambda estimate: -estimate[0].promise)
        results = [
            self._result(cell, self._scales[job.pair].moved(change), estimated=True)
            for job, change in estimates
            for cell in job.cells
        ]
        return CellBatch(cells=tuple(results))

    def compute(self, number: int) -> CellBatch:
        """Compute a chunk and return its cells, the most promising first."""
        chunk = self.chunks[number]
        found = self._measuring.raw([*chunk.jobs, *chunk.riders])
        floors = [
            self._noise(number, rider, raw)
            for rider, raw in zip(chunk.riders, found[len(chunk.jobs) :], strict=True)
        ]
        self._floors += floors
        by_start = {
            (rider.pair, start): floor.values
            for rider, floor in zip(chunk.riders, floors, strict=True)
            for start in rider.starts
        }
        results = [
            self._result(cell, raw, floors=by_start[job.pair, job.start])
            for job, raw in zip(chunk.jobs, found, strict=False)
            for cell in job.cells
        ]
        self._note(chunk.jobs, found)
        return CellBatch(cells=tuple(results), noise_floor=_largest(floors))

    def end(self, elapsed_s: float) -> SweepEnd:
        """Return what came of it."""
        agreement = rank_correlation(*zip(*self._effects, strict=True)) if self._effects else None
        return SweepEnd(
            counts=self._counting.counts(done=True),
            noise_floor=_largest(self._floors),
            noise_floors=tuple(self._floors),
            failed=self._failed,
            rank_correlation=agreement,
            elapsed_s=elapsed_s,
        )

    def _clean_lanes(self, pair: int, spec: SweepSpec) -> tuple[Lane, ...]:
        prompt = spec.source.prompt()
        if prompt is None:
            return ()
        return lanes_of(pair, prompt, spec.answer_ids, spec.foil_ids)

    def _scale(self, pair: int, clean: Sequence[Lane]) -> Scale:
        baselines = self._setting.baselines
        spec = self._specs[pair]
        return scale_of(
            pair,
            spec.metrics,
            answer=spec.answer_ids,
            foil=spec.foil_ids,
            corrupt=[baselines[lane] for lane in self._lanes[pair]],
            clean=[baselines[lane] for lane in clean] or None,
        )

    def _estimated(self) -> list[Raw]:
        """Return the estimated change of each job, and hold it for its promise; or nothing."""
        exact = self._shared.method == "exact"
        if not self._jobs or (exact and self._shared.order == "position"):
            return []
        metrics = (ordering_metric(self._scales),) if exact else raw_metrics(self._shared.metrics)
        try:
            changes = estimate(
                self._model,
                self._setting,
                self._scales,
                self._jobs,
                self._lanes,
                metrics=metrics,
            )
        except GradientError:
            if exact:
                return []
            raise
        for job, change in zip(self._jobs, changes, strict=True):
            # What is no number promises nothing.
            job.promise = abs(change[metrics[0]]) if math.isfinite(change[metrics[0]]) else 0.0
        return changes

    def _chunked(self) -> list[Chunk]:
        if self._shared.method == "attribution":
            return []
        return in_chunks(
            self._model,
            self._jobs,
            self._lanes,
            order=self._shared.order,
            chunk_bytes=self._shared.chunk_bytes,
        )

    def _noise(self, number: int, rider: Rider, raw: Raw | None) -> NoiseFloor:
        scale = self._scales[rider.pair]
        strayed, still = scale.values(raw), scale.values(scale.corrupt)
        apart = {
            name: abs(value - before)
            for name, value in strayed.items()
            if value is not None and (before := still[name]) is not None
        }
        return NoiseFloor(pair=rider.pair, chunk=number, starts=rider.starts, values=apart)

    def _result(
        self,
        cell: Cell,
        raw: Raw | None,
        *,
        floors: Mapping[MetricName, float] = MappingProxyType({}),
        free: bool = False,
        estimated: bool = False,
    ) -> CellResult:
        scale = self._scales[cell.pair]
        values, still = scale.values(raw), scale.values(scale.corrupt)
        quiet = tuple(
            not estimated
            and value is not None
            and (before := still[name]) is not None
            and abs(value - before) <= floors.get(name, 0.0)
            for name, value in values.items()
        )
        self._failed += raw is None
        return CellResult(
            pair=cell.pair,
            hook=cell.hook.name,
            layer=cell.layer,
            position=cell.position,
            values=tuple(values.values()),
            below_noise=quiet[0],
            free=free,
            error="a metric is not finite" if raw is None else None,
            estimated=estimated,
            quiet=quiet,
        )

    def _note(self, jobs: Sequence[Job], found: Sequence[Raw | None]) -> None:
        """Keep estimated and exact effects, to tell at the end how far the preview was right."""
        name = RAW.get(self._shared.metrics[0], self._shared.metrics[0])
        for job, raw in zip(jobs, found, strict=False):
            if raw is not None and self._changes:
                effect = abs(raw[name] - self._scales[job.pair].corrupt[name])
                self._effects.append((job.promise, effect))


def _largest(floors: Sequence[NoiseFloor]) -> Floors:
    largest: Floors = {}
    for floor in floors:
        for name, value in floor.values.items():
            largest[name] = max(value, largest.get(name, 0.0))
    return largest
