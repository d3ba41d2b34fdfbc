"""A sweep that has begun."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import msgspec
from torch import nn

from aegir_adapters.patching.grids import Grids
from aegir_adapters.patching.interruption import interruptible
from aegir_adapters.patching.origin import Origin
from aegir_adapters.patching.plan import SweepPlan
from aegir_adapters.patching.reading import finite, read
from aegir_adapters.patching.response import (
    AlignmentReport,
    CellEvent,
    PatchSweepResponse,
    Skipped,
    StartEvent,
    report_alignment,
    report_unaligned,
)
from aegir_adapters.patching.results import (
    CellBatch,
    CellResult,
    NoiseFloor,
    SweepBegin,
    SweepCounts,
    SweepEnd,
)

__all__ = ["RunningSweep"]

Turn = AbstractContextManager[Any]


class RunningSweep:
    """A sweep whose baselines are known and whose cells are computed while they are asked for.

    Used by one thread at a time, though not always by the same one.

    Args:
        plan: what was asked for.
        origin: where the patches come from.
        begin: the engine's first item.
        items: the others.
        turn: held while the model computes.
        layers: the model's.
        interrupt: stops the model when set.
        held: what is let go at the end, before there is a summary.

    Attributes:
        start: what is known at once.
    """

    def __init__(
        self,
        plan: SweepPlan,
        origin: Origin,
        begin: SweepBegin,
        *,
        items: Iterator[SweepBegin | CellBatch | SweepEnd],
        turn: Turn,
        layers: Sequence[nn.Module],
        interrupt: threading.Event | None,
        held: ExitStack,
    ) -> None:
        self._plan, self._origin, self._begin = plan, origin, begin
        self._items, self._turn, self._held = items, turn, held
        self._layers, self._interrupt = layers, interrupt
        self._reading = read(plan.request, begin.baselines[0])
        self._grids = Grids(plan.hooks, plan.layers, origin.positions, metric=plan.request.metric)
        self._end: SweepEnd | None = None
        self.start = self._started()

    def batches(self) -> Iterator[tuple[CellEvent, ...]]:
        """Yield cells as they become final, most promising first; each cell comes once.

        Raises:
            Interrupted: it was asked to stop.
        """
        while (cells := self.next_batch()) is not None:
            yield cells

    def next_batch(self) -> tuple[CellEvent, ...] | None:
        """Return the next cells that become final, `None` after the last ones.

        Raises:
            Interrupted: it was asked to stop.
        """
        while self._end is None:
            with self._turn, interruptible(self._layers, self._interrupt):
                item = next(self._items)
            for lease in self._origin.leases:
                lease.renew()
            if isinstance(item, CellBatch):
                return tuple(map(self._cell, item.cells))
            if isinstance(item, SweepEnd):
                self._end = item
        return None

    def summary(self) -> PatchSweepResponse:
        """End the sweep and return its result, once all batches have been taken.

        Whoever has the result can rely on a captured run being gone, or kept.
        """
        assert self._end is not None  # noqa: S101 - our own bug otherwise
        if self._plan.request.keep_source:
            for lease in self._origin.leases:
                lease.keep()
        self.close()
        return self._response(self._end)

    def close(self) -> None:
        """Let everything go, as leaving the service's block does. Idempotent."""
        self._held.close()

    def _cell(self, cell: CellResult) -> CellEvent:
        assert isinstance(cell.position, int)  # noqa: S101 - none is asked for in groups
        event = CellEvent(
            hook=cell.hook,
            layer=cell.layer,
            position=cell.position,
            value=self._reading.value(cell.values[0]),
            below_noise=cell.below_noise,
            free=cell.free,
            error=cell.error,
        )
        self._grids.add(event)
        return event

    def _started(self) -> StartEvent:
        plan, begin = self._plan, self._begin
        return StartEvent(
            layers=plan.layers,
            positions=self._origin.positions,
            hook=plan.hooks[0],
            hooks=plan.hooks,
            metric=plan.request.metric,
            clean=self._reading.clean,
            corrupt=self._reading.corrupt,
            alignment=self._alignment(),
            skipped=self._unaligned(),
            auto_captured=self._origin.captured is not None,
            captured_source_run=self._origin.captured,
            warnings=self._warnings(),
            engine=begin.engine,
            engine_reason=begin.engine_reason,
            **_counters(begin.counts),
        )

    def _response(self, end: SweepEnd) -> PatchSweepResponse:
        plan, start = self._plan, self.start
        hook_grids = tuple(map(self._grids.hook_grid, plan.hooks))
        first = hook_grids[0]
        return PatchSweepResponse(
            layers=start.layers,
            positions=start.positions,
            hook=first.hook,
            metric=start.metric,
            grid=first.grid,
            clean=start.clean,
            corrupt=start.corrupt,
            argmax=first.argmax,
            skipped=(*start.skipped, *self._grids.failed()),
            alignment=start.alignment,
            noise_floor=self._reading.noise(end.noise_floor),
            noise_floors=tuple(map(self._noise, end.noise_floors)),
            auto_captured=start.auto_captured,
            captured_source_run=start.captured_source_run,
            hook_grids=None if plan.request.hooks is None else hook_grids,
            below_noise=first.below_noise,
            warnings=start.warnings,
            rank_correlation=finite(end.rank_correlation),
            elapsed_s=end.elapsed_s,
            engine=start.engine,
            engine_reason=start.engine_reason,
            **_counters(end.counts),
        )

    def _noise(self, floor: NoiseFloor) -> NoiseFloor:
        value = self._reading.noise(floor.values)
        values = {} if value is None else {self._plan.request.metric: value}
        return msgspec.structs.replace(floor, values=values)

    def _alignment(self) -> AlignmentReport | None:
        alignment = self._origin.alignment
        if alignment is None:
            return None
        return report_alignment(alignment, self._origin.positions)

    def _unaligned(self) -> tuple[Skipped, ...]:
        alignment, asked = self._origin.alignment, set(self._plan.positions)
        unaligned = alignment.unaligned if alignment is not None else ()
        return report_unaligned([one for one in unaligned if one.position in asked])

    def _warnings(self) -> tuple[str, ...]:
        alignment = self._origin.alignment
        return (*(alignment.warnings if alignment is not None else ()), *self._begin.warnings)


def _counters(counts: SweepCounts) -> dict[str, int]:
    return {
        "cells_total": counts.total,
        "cells_free": counts.free,
        "cells_deduplicated": counts.deduplicated,
        "cells_computed": counts.computed,
        "token_layers": counts.token_layers,
        "token_layers_naive": counts.token_layers_naive,
        "token_layers_riders": counts.token_layers_riders,
        "token_layers_baselines": counts.token_layers_baselines,
    }
