"""What is told of a sweep, beside its cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aegir_adapters.patching.alignment import Alignment
from aegir_adapters.patching.columns import Columns
from aegir_adapters.patching.grids import Grids
from aegir_adapters.patching.lanes import lanes_of
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.origin import Origin
from aegir_adapters.patching.plan import PairPlan, SweepPlan
from aegir_adapters.patching.reading import asked_metrics, finite, mean, readings
from aegir_adapters.patching.response import PatchSweepResponse, StartEvent
from aegir_adapters.patching.response_parts import (
    AlignmentReport,
    MetricGrid,
    PairGrid,
    Skipped,
    SweptPair,
)
from aegir_adapters.patching.results import NoiseFloor, SweepBegin, SweepCounts, SweepEnd

__all__ = ["SweepReport"]


class SweepReport:
    """A sweep, as its start and its summary tell it.

    Args:
        plan: what was asked for.
        origins: where the patches of each prompt pair come from.
        columns: what is swept.
        begin: the engine's first item.
        num_layers: the model's layers.

    Attributes:
        plan: what was asked for.
        columns: what is swept.
        metrics: what is measured, the first of which the grid holds.
        readings: for each prompt pair, how each metric is read.
        paired: whether there are several prompt pairs, or one that was given like several.
    """

    def __init__(
        self,
        plan: SweepPlan,
        origins: Sequence[Origin],
        columns: Columns,
        begin: SweepBegin,
        *,
        num_layers: int,
    ) -> None:
        self.plan = plan
        self.columns = columns
        self.metrics = asked_metrics(plan.request)
        self.readings = [readings(plan.request, baselines) for baselines in begin.baselines]
        self.paired = plan.request.pairs is not None
        self._origins = origins
        self._begin = begin
        self._num_layers = num_layers
        self._pairs = tuple(map(self._pair, range(len(plan.pairs))))

    def start(self) -> StartEvent:
        """Return what is known at once."""
        return StartEvent(
            hook=self.plan.hooks[0],
            hooks=self.plan.hooks,
            skipped=self._unaligned(),
            metrics=self.metrics if self.plan.request.metrics is not None else None,
            pairs=self._pairs if self.paired else None,
            **self._common(self._begin.counts),
        )

    def summary(self, grids: Grids, end: SweepEnd) -> PatchSweepResponse:
        """Return all that came of the sweep."""
        request, hooks = self.plan.request, tuple(map(grids.hook_grid, self.plan.hooks))
        first = hooks[0]
        pairs = tuple(self._pair_grid(pair, grids, end) for pair in self._pairs)
        return PatchSweepResponse(
            hook=first.hook,
            grid=first.grid,
            argmax=first.argmax,
            below_noise=first.below_noise,
            skipped=(*self._unaligned(), *self._failed(grids)),
            noise_floor=self._noise(end, 0),
            noise_floors=tuple(map(self._read_floor, end.noise_floors)),
            hook_grids=None if request.hooks is None else hooks,
            metric_grids=self._metric_grids(grids, end),
            pair_grids=pairs if self.paired else None,
            rank_correlation=finite(end.rank_correlation),
            elapsed_s=end.elapsed_s,
            **self._common(end.counts),
        )

    def _common(self, counts: SweepCounts) -> dict[str, Any]:
        """Return what start and summary have in common."""
        first, begin = self._pairs[0], self._begin
        captured = [origin.captured for origin in self._origins if origin.captured is not None]
        return {
            "layers": self.plan.layers,
            "positions": self.columns.labels,
            "metric": self.metrics[0],
            "clean": mean([pair.clean for pair in self._pairs]),
            "corrupt": mean([pair.corrupt for pair in self._pairs]),
            "alignment": first.alignment,
            "auto_captured": bool(captured),
            "captured_source_run": captured[0] if captured else None,
            "warnings": self._warnings(),
            "engine": begin.engine,
            "engine_reason": begin.engine_reason,
            "method": begin.method,
            "columns": self.columns.names,
            "column_positions": first.column_positions,
            "tokens": first.tokens,
            **_counters(self._with_repeated(counts)),
        }

    def _pair(self, index: int) -> SweptPair:
        origin, rows = self._origins[index], self.columns.rows[index]
        return SweptPair(
            pair=index,
            column_positions=rows,
            tokens=self.plan.pairs[index].tokens,
            clean=self.readings[index][0].clean,
            corrupt=self.readings[index][0].corrupt,
            alignment=_reported(origin.alignment, [row for column in rows for row in column]),
            auto_captured=origin.captured is not None,
            captured_source_run=origin.captured,
        )

    def _pair_grid(self, pair: SweptPair, grids: Grids, end: SweepEnd) -> PairGrid:
        hooks = tuple(grids.hook_grid(hook, pair=pair.pair) for hook in self.plan.hooks)
        return PairGrid(
            **msgspec.structs.asdict(pair),
            noise_floor=self._noise(end, 0, pair.pair),
            hook_grids=hooks,
            metric_grids=self._metric_grids(grids, end, pair.pair),
        )

    def _metric_grids(
        self, grids: Grids, end: SweepEnd, pair: int | None = None
    ) -> tuple[MetricGrid, ...] | None:
        """Return the grids of a pair, or of the mean over all of them."""
        if self.plan.request.metrics is None:
            return None
        own = self.readings if pair is None else [self.readings[pair]]
        return tuple(
            MetricGrid(
                metric=metric,
                clean=mean([each[index].clean for each in own]),
                corrupt=mean([each[index].corrupt for each in own]),
                noise_floor=self._noise(end, index, pair),
                **msgspec.structs.asdict(grids.hook_grid(hook, metric=index, pair=pair)),
            )
            for hook in self.plan.hooks
            for index, metric in enumerate(self.metrics)
        )

    def _noise(self, end: SweepEnd, metric: int, pair: int | None = None) -> float | None:
        """Return the largest noise floor of a pair, or of all."""
        floors = (
            self.readings[floor.pair][metric].noise(floor.values)
            for floor in end.noise_floors
            if pair in {None, floor.pair}
        )
        return max((floor for floor in floors if floor is not None), default=None)

    def _read_floor(self, floor: NoiseFloor) -> NoiseFloor:
        values: dict[MetricName, float] = {}
        for reading in self.readings[floor.pair]:
            value = reading.noise(floor.values)
            if value is not None:
                values[reading.metric] = value
        return msgspec.structs.replace(floor, values=values)

    def _unaligned(self) -> tuple[Skipped, ...]:
        """Return the positions that were asked for and have no counterpart."""
        return tuple(
            skipped
            for index, (plan, origin) in enumerate(self._parts())
            for skipped in _unaligned(plan, origin, index if self.paired else None)
        )

    def _failed(self, grids: Grids) -> tuple[Skipped, ...]:
        return tuple(
            Skipped(
                position=place.label,
                reason=reason,
                hook=place.hook,
                layer=place.layer,
                pair=place.pair if self.paired else None,
                column=self.columns.name(place.label),
            )
            for place, reason in grids.failed()
        )

    def _warnings(self) -> tuple[str, ...]:
        found: list[str] = []
        for index, (plan, origin) in enumerate(self._parts()):
            of = f"Pair {index}: " if self.paired else ""
            told = origin.alignment.warnings if origin.alignment is not None else ()
            found += [f"{of}{warning}" for warning in (*told, *_thinned(plan, origin))]
        return (*found, *self._begin.warnings)

    def _parts(self) -> zip[tuple[PairPlan, Origin]]:
        return zip(self.plan.pairs, self._origins, strict=True)

    def _with_repeated(self, counts: SweepCounts) -> SweepCounts:
        """Count columns that equal another one, which the engine has not seen."""
        grids = len(self.plan.hooks) * len(self.plan.layers)
        cells = [grids * self.columns.repeated(index) for index in range(len(self.plan.pairs))]
        tokens = [sum(lane.length for lane in _lanes(plan)) for plan in self.plan.pairs]
        naive = sum(count * length for count, length in zip(cells, tokens, strict=True))
        return msgspec.structs.replace(
            counts,
            total=counts.total + sum(cells),
            deduplicated=counts.deduplicated + sum(cells),
            token_layers_naive=counts.token_layers_naive + naive * self._num_layers,
        )


def _lanes(plan: PairPlan) -> Sequence[Any]:
    return lanes_of(0, plan.prompt.token_ids, plan.target.answer_ids, plan.target.foil_ids)


def _unaligned(plan: PairPlan, origin: Origin, pair: int | None) -> Iterator[Skipped]:
    if origin.alignment is not None:
        names = _columns_by_row(plan)
        for one in origin.alignment.unaligned:
            for name in names.get(one.position, ()):
                yield Skipped(position=one.position, reason=one.reason, pair=pair, column=name)


def _columns_by_row(plan: PairPlan) -> Mapping[int, list[str | None]]:
    """Return the names of the columns that a position is asked for in; `None` without groups."""
    names = plan.names if plan.names is not None else (None,) * len(plan.columns)
    found: dict[int, list[str | None]] = defaultdict(list)
    for name, rows in zip(names, plan.columns, strict=True):
        for row in rows:
            found[row].append(name)
    return found


def _thinned(plan: PairPlan, origin: Origin) -> list[str]:
    """Return a warning of each group of which only some positions are patched."""
    columns = zip(plan.names or (), plan.columns, origin.rows, strict=False)
    return [
        f"The group {name!r} is patched at {len(rows)} of its {len(asked)} positions: the others "
        "are not aligned"
        for name, asked, rows in columns
        if 0 < len(rows) < len(asked)
    ]


def _reported(alignment: Alignment | None, positions: Sequence[int]) -> AlignmentReport | None:
    if alignment is None:
        return None
    return AlignmentReport(
        n_clean=alignment.n_clean,
        n_corrupt=alignment.n_corrupt,
        prefix_len=alignment.prefix_len,
        suffix_len=alignment.suffix_len,
        unaligned_positions=tuple(one.position for one in alignment.unaligned),
        shifts=tuple(alignment.sources[position] - position for position in positions),
    )


def _counters(counts: SweepCounts) -> dict[str, int]:
    return {
        "cells_total": counts.total,
        "cells_free": counts.free,
        "cells_deduplicated": counts.deduplicated,
        "cells_computed": counts.computed,
        "cells_estimated": counts.estimated,
        "token_layers": counts.token_layers,
        "token_layers_naive": counts.token_layers_naive,
        "token_layers_riders": counts.token_layers_riders,
        "token_layers_baselines": counts.token_layers_baselines,
    }
