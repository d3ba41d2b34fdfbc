"""A sweep that has begun."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from msgspec import UNSET
from torch import nn

from aegir_adapters.patching.grids import Grids, Place, PlacedCell
from aegir_adapters.patching.interruption import interruptible
from aegir_adapters.patching.reporting import SweepReport
from aegir_adapters.patching.response import CellEvent, PatchSweepResponse
from aegir_adapters.patching.results import CellBatch, CellResult, SweepBegin, SweepEnd
from aegir_adapters.patching.store import Lease

__all__ = ["RunningSweep"]

Turn = AbstractContextManager[Any]


class RunningSweep:
    """A sweep whose baselines are known and whose cells are computed while they are asked for.

    Used by one thread at a time, though not always by the same one.

    Args:
        report: tells what is known of it.
        leases: of the runs that it reads.
        items: what the engine yields, its first item aside.
        turn: held while the model computes.
        layers: the model's.
        interrupt: stops the model when set.
        held: what is let go at the end, before there is a summary.

    Attributes:
        start: what is known at once.
    """

    def __init__(
        self,
        report: SweepReport,
        leases: Sequence[Lease],
        *,
        items: Iterator[SweepBegin | CellBatch | SweepEnd],
        turn: Turn,
        layers: Sequence[nn.Module],
        interrupt: threading.Event | None,
        held: ExitStack,
    ) -> None:
        self._report, self._leases = report, leases
        self._items, self._turn, self._held = items, turn, held
        self._layers, self._interrupt = layers, interrupt
        self._labelled = report.columns.labelled()
        self._grids = Grids(
            report.plan.hooks,
            report.plan.layers,
            report.columns.labels,
            metrics=report.metrics,
            pairs=len(report.plan.pairs),
        )
        self._end: SweepEnd | None = None
        self.start = report.start()

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
            for lease in self._leases:
                lease.renew()
            if isinstance(item, CellBatch):
                return tuple(event for cell in item.cells for event in self._placed(cell))
            if isinstance(item, SweepEnd):
                self._end = item
        return None

    def summary(self) -> PatchSweepResponse:
        """End the sweep and return its result, once all batches have been taken.

        Whoever has the result can rely on captured runs being gone, or kept.
        """
        assert self._end is not None  # noqa: S101 - our own bug otherwise
        if self._report.plan.request.keep_source:
            for lease in self._leases:
                lease.keep()
        self.close()
        return self._report.summary(self._grids, self._end)

    def close(self) -> None:
        """Let everything go, as leaving the service's block does. Idempotent."""
        self._held.close()

    def _placed(self, cell: CellResult) -> Iterator[CellEvent]:
        """Put a cell in its place, or in those of all columns that it stands for."""
        readings = self._report.readings[cell.pair]
        placed = PlacedCell(
            values=tuple(reading.value(cell.values) for reading in readings),
            quiet=tuple(cell.quiet[reading.index] for reading in readings),
            error=cell.error,
        )
        first, *_ = labels = self._labelled[cell.pair][cell.position]
        for label in labels:
            self._grids.add(Place(cell.pair, cell.hook, cell.layer, label), placed)
            # Further columns count among the cells that equal another one.
            yield self._event(cell, placed, label, free=cell.free and label == first)

    def _event(self, cell: CellResult, placed: PlacedCell, label: int, *, free: bool) -> CellEvent:
        several = self._report.plan.request.metrics is not None
        return CellEvent(
            hook=cell.hook,
            layer=cell.layer,
            position=label,
            value=placed.values[0],
            below_noise=placed.quiet[0],
            free=free,
            error=cell.error,
            estimated=cell.estimated,
            pair=cell.pair if self._report.paired else UNSET,
            values=dict(zip(self._report.metrics, placed.values, strict=True))
            if several
            else UNSET,
        )
