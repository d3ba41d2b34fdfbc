"""The computing behind one sweep, step by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from aegir_adapters.patching.attribution import estimate, rank_correlation
from aegir_adapters.patching.cells import Cell, Grid, Job, lay_out
from aegir_adapters.patching.chunks import Chunk, Rider, in_chunks
from aegir_adapters.patching.lanes import Lane, lanes_of
from aegir_adapters.patching.metrics import RAW, MetricName
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.patches import Patch
from aegir_adapters.patching.results import (
    CellBatch,
    CellResult,
    NoiseFloor,
    SweepBegin,
    SweepCounts,
    SweepEnd,
)
from aegir_adapters.patching.scoring import Raw, Scale, scale_of, scored
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
        self._previews = self._shared.order == "importance"
        if self._previews:
            references = [scale.reference for scale in self._scales]
            estimate(model, self._setting.stages, references, self._jobs, self._lanes)
        self.chunks = in_chunks(
            model,
            self._jobs,
            self._lanes,
            order=self._shared.order,
            chunk_bytes=self._shared.chunk_bytes,
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
            counts=self._counts(),
            engine=self._model.engine,
            engine_reason=self._model.engine_reason,
            warnings=tuple(chain.from_iterable(scale.warnings() for scale in self._scales)),
        )

    def free_cells(self) -> CellBatch | None:
        """Return the cells that cost nothing, if there are any."""
        if not self._free:
            return None
        results = [
            self._result(cell, self._scales[cell.pair].corrupt, floor=0.0, free=True)
            for cell in self._free
        ]
        return CellBatch(cells=tuple(results))

    def compute(self, number: int) -> CellBatch:
        """Compute a chunk and return its cells, the most promising first."""
        chunk = self.chunks[number]
        found = self._run(chunk)
        floors = [
            self._noise(number, rider, raw)
            for rider, raw in zip(chunk.riders, found[len(chunk.jobs) :], strict=True)
        ]
        self._floors += floors
        first = self._shared.metrics[0]
        by_start = {
            (rider.pair, start): floor.values.get(first, 0.0)
            for rider, floor in zip(chunk.riders, floors, strict=True)
            for start in rider.starts
        }
        results = [
            self._result(cell, raw, floor=by_start[job.pair, job.start])
            for job, raw in zip(chunk.jobs, found, strict=False)
            for cell in job.cells
        ]
        self._note(chunk.jobs, found)
        return CellBatch(cells=tuple(results), noise_floor=_largest(floors))

    def end(self, elapsed_s: float) -> SweepEnd:
        """Return what came of it."""
        agreement = rank_correlation(*zip(*self._effects, strict=True)) if self._effects else None
        return SweepEnd(
            counts=self._counts(done=True),
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

    def _run(self, chunk: Chunk) -> list[Raw | None]:
        """Return the raw metrics of a chunk's jobs, and then of its riders."""
        units: list[Job | Rider] = [*chunk.jobs, *chunk.riders]
        left = self._residuals(units)
        found: list[Raw | None] = [None] * len(units)
        for pair, lanes in enumerate(self._lanes):
            own = [index for index, unit in enumerate(units) if unit.pair == pair]
            if not own:
                continue
            rows = [torch.stack([left[index, lane] for index in own]) for lane in lanes]
            values = scored(
                self._model,
                self._scales[pair],
                lanes,
                rows,
                chunk_bytes=self._shared.chunk_bytes,
            )
            for index, value in zip(own, values, strict=True):
                found[index] = value
        return found

    def _residuals(self, units: Sequence[Job | Rider]) -> dict[tuple[int, Lane], Tensor]:
        """Return what leaves the last layer, by unit and lane. Shape (reads, d_model) each."""
        # Lanes of two pairs can be of one length and be read from different rows on; a patch has no
        # more rows than from its first on, so those that are read alike go together.
        asked: dict[tuple[int, int], list[tuple[int, Lane, Patch]]] = defaultdict(list)
        for index, unit in enumerate(units):
            for lane, patch in zip(self._lanes[unit.pair], unit.patches, strict=True):
                asked[lane.length, lane.reads].append((index, lane, patch))
        left: dict[tuple[int, Lane], Tensor] = {}
        for (length, reads), entries in asked.items():
            engine = self._setting.stages[length].engine
            rows = engine.run([patch for _, _, patch in entries], reads=reads)
            for (index, lane, _), row in zip(entries, rows, strict=True):
                left[index, lane] = row
        return left

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
        self, cell: Cell, raw: Raw | None, *, floor: float, free: bool = False
    ) -> CellResult:
        scale = self._scales[cell.pair]
        values = tuple(scale.values(raw).values())
        still = scale.values(scale.corrupt)[self._shared.metrics[0]]
        value = values[0]
        self._failed += raw is None
        return CellResult(
            pair=cell.pair,
            hook=cell.hook.name,
            layer=cell.layer,
            position=cell.position,
            values=values,
            below_noise=value is not None and still is not None and abs(value - still) <= floor,
            free=free,
            error="a metric is not finite" if raw is None else None,
        )

    def _note(self, jobs: Sequence[Job], found: Sequence[Raw | None]) -> None:
        """Keep estimated and exact effects, to tell at the end how far the preview was right."""
        name = RAW.get(self._shared.metrics[0], self._shared.metrics[0])
        for job, raw in zip(jobs, found, strict=False):
            if raw is not None and self._previews:
                effect = abs(raw[name] - self._scales[job.pair].corrupt[name])
                self._effects.append((job.promise, effect))

    def _counts(self, *, done: bool = False) -> SweepCounts:
        """Return how much work the sweep is, or how much it was."""
        jobs, riders = self._predicted()
        engines = [stage.engine for stage in self._setting.stages.values()]
        total = len(self._free) + sum(len(job.cells) for job in self._jobs)
        naive = sum(
            len(grid.cells()) * sum(lane.length for lane in grid.lanes) for grid in self._grids
        )
        previews = 3 * sum(lane.length for lanes in self._lanes for lane in lanes)
        return SweepCounts(
            total=total,
            free=len(self._free),
            computed=len(self._jobs),
            deduplicated=total - len(self._free) - len(self._jobs),
            token_layers=sum(e.token_layers for e in engines) - riders if done else jobs,
            token_layers_naive=naive * self._model.num_layers,
            token_layers_riders=riders,
            token_layers_baselines=self._setting.token_layers
            + (previews * self._model.num_layers if self._previews and self._jobs else 0),
        )

    def _predicted(self) -> tuple[int, int]:
        """Return the token-layers of all jobs and of all riders."""
        jobs = (job for chunk in self.chunks for job in chunk.jobs)
        riders = (rider for chunk in self.chunks for rider in chunk.riders)
        return self._cost(jobs), self._cost(riders)

    def _cost(self, units: Iterable[Job | Rider]) -> int:
        return sum(
            self._setting.stages[lane.length].engine.cost(
                patch, num_layers=self._model.num_layers, length=lane.length
            )
            for unit in units
            for lane, patch in zip(self._lanes[unit.pair], unit.patches, strict=True)
        )


def _largest(floors: Sequence[NoiseFloor]) -> Floors:
    largest: Floors = {}
    for floor in floors:
        for name, value in floor.values.items():
            largest[name] = max(value, largest.get(name, 0.0))
    return largest
