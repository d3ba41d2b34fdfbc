"""What happens at the pick site, counted where the trainer can see it.

Who picks has a row of counts of its own: a list in the trainer's process, and for each `DataLoader`
worker a part of memory that it shares with the trainer, so nothing is ever locked or sent. Counts
only grow, and a window is the difference of two readings: a drain writes nothing that a picking
process or thread writes, and so loses no pick. A pick is counted when it is made, which with
prefetching is a little before its item is trained on.
"""

from __future__ import annotations

import ctypes
from operator import sub
from typing import Any, Protocol

import torch

from aegir_adapters.mixing.formulas import Targets, raw_keys

__all__ = ["Cells", "MeterRow", "MixMeter"]

_ROWS, _WORKERS, _HEADER = range(3)
"""Shared cells before the rows: rows ever used, and workers of the newest iteration (0: none)."""


class Cells(Protocol):
    """Integers by position: a list, or memory that is shared."""

    def __getitem__(self, index: int, /) -> int:
        """Return one."""
        ...

    def __setitem__(self, index: int, value: int, /) -> None:
        """Set one."""
        ...


class MeterRow:
    """The counts of one process that picks.

    Cells, of K readers: K picks, stays, switches, restarts, nanoseconds in readers, K flags of
    readers that have ended here, readers left, whether the row is in use.

    Args:
        cells: of this row.
        readers: how many there are.

    Attributes:
        cells: as given; whoever picks counts picks, stays, switches and time in them.
    """

    def __init__(self, cells: Cells, readers: int) -> None:
        self.cells, self._readers = cells, readers
        self._ended_in = [0] * readers
        self._shards = 0

    def begin(self, *, shards: int) -> None:
        """Begin an iteration over so many logical shards."""
        self._shards = shards
        self._ended_in = [0] * self._readers
        for reader in range(self._readers):
            self.cells[self._readers + 4 + reader] = 0
        self.cells[2 * self._readers + 4] = self._readers
        self.cells[2 * self._readers + 5] = int(shards > 0)

    def restart(self) -> None:
        """Count a pass that begins anew."""
        self.cells[self._readers + 2] += 1

    def end(self, reader: int, *, left: int) -> None:
        """Note that a reader has ended in one more logical shard, which has so many left."""
        self._ended_in[reader] += 1
        if self._ended_in[reader] == self._shards:
            self.cells[self._readers + 4 + reader] = 1
        live = 2 * self._readers + 4
        self.cells[live] = min(self.cells[live], left)


class MixMeter:
    """The counts of one rank.

    Survives being pickled for a spawned worker and being forked; the workers' copies write what
    this process reads. `begin_step` and `drain` belong to one thread, the trainer's.

    Args:
        targets: names the readers.
        workers: how many may pick at most.
    """

    def __init__(self, targets: Targets, *, workers: int) -> None:
        self._readers = len(targets.weights)
        self._counts = self._readers + 4
        self._keys = raw_keys(targets).all
        self._width = 2 * self._readers + 6
        self._own = [0] * self._width
        memory = torch.zeros(_HEADER + workers * self._width, dtype=torch.int64)
        self._memory: torch.Tensor = memory.share_memory_()  # type: ignore[no-untyped-call]
        self._shared = _cells_of(self._memory)
        self._drained = [0] * self._counts
        self._noted = [0] * self._readers
        self._picked_at = [-1] * self._readers
        self._step = 0
        self._first_step: int | None = None
        self._drained_step = -1

    def row(self, worker: int | None, *, workers: int = 0) -> MeterRow:
        """Return the row of this process, or of one of so many workers, for a new iteration."""
        # All workers write the same two numbers, so it does not matter who is last.
        self._shared[_WORKERS] = workers
        self._shared[_ROWS] = max(self._shared[_ROWS], workers)
        if worker is None:
            return MeterRow(self._own, self._readers)
        begin = _HEADER + worker * self._width
        return MeterRow(self._shared[begin : begin + self._width], self._readers)

    def begin_step(self, step: int) -> None:
        """Let picks from now on count for a step; those before the first one count for that."""
        if self._first_step is None:
            self._first_step, self._drained_step = step, step - 1
        else:
            self._note(self._row_of_all())
        self._step = step

    def drain(self) -> dict[str, float]:
        """Return the raw values of the window since the last drain; see `formulas.raw_keys`."""
        row, step = self._row_of_all(), self._step
        self._note(row)
        drained, self._drained = self._drained, row[: self._counts]
        window: list[float] = list(map(sub, self._drained, drained))
        window[-1] *= 1e-9
        steps = max(1, step - self._drained_step)
        self._drained_step = step
        live = row[-2] if row[-1] else self._readers
        raw = (*window, 1, self._staleness(row), steps, live)
        return dict(zip(self._keys, raw, strict=True))

    @property
    def _last_picked_step(self) -> list[int]:
        """The step in which each reader was last picked on this rank, -1 for never."""
        self._note(self._row_of_all())
        return list(self._picked_at)

    def _note(self, row: list[int]) -> None:
        """Note the step for readers whose count has grown, once per step and not once per pick."""
        picks = row[: self._readers]
        if picks != self._noted:
            for reader, (now, then) in enumerate(zip(picks, self._noted, strict=True)):
                if now != then:
                    self._picked_at[reader] = self._step
            self._noted = picks

    def _staleness(self, row: list[int]) -> int:
        """Return for how many steps the reader that has waited longest was not picked.

        A reader that was never picked has waited since the first step of this process. One that
        has ended in all logical shards of this rank waits for nothing: `live_readers_min` tells.
        """
        waiting, ended = self._picked_at, row[self._counts : -2]
        if any(ended):
            waiting = [at for at, over in zip(waiting, ended, strict=True) if not over]
        since = max(min(waiting, default=self._step), self._first_step or 0)
        return max(0, self._step - since)

    def _row_of_all(self) -> list[int]:
        """Return a copy of the rows as one: counts added, flags of readers where all agree."""
        number = self._shared[_ROWS]
        if not number:
            return self._own[:]
        workers = self._shared[_WORKERS]
        cells = self._shared[_HEADER : _HEADER + number * self._width].tolist()
        rows = [cells[n : n + self._width] for n in range(0, len(cells), self._width)]
        # Rows that the newest iteration does not use keep what they counted, and know no more.
        active = [row for row in rows[:workers] if row[-1]] or [self._own]
        return [
            *map(
                sum, zip(self._own[: self._counts], *(r[: self._counts] for r in rows), strict=True)
            ),
            *map(min, zip(*(row[self._counts :] for row in active), strict=True)),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the view on the memory, which is made anew."""
        return {name: value for name, value in vars(self).items() if name != "_shared"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look at the same memory, in another process."""
        vars(self).update(state)
        self._shared = _cells_of(self._memory)


def _cells_of(memory: torch.Tensor) -> memoryview[int]:
    """Return a tensor's memory as integers: a store through it takes 40 ns, through torch 3 us."""
    buffer = (ctypes.c_int64 * memory.numel()).from_address(memory.data_ptr())
    # An iterator may outlive its mixer: the view holds the buffer, which has to hold the memory.
    buffer.memory = memory  # type: ignore[attr-defined]
    return memoryview(buffer).cast("B").cast("q")
