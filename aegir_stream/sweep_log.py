"""The file of a sweep, as the process writes it that runs the sweep.

It is a file of its own beside the run's streams: no attempt is opened, no lease is taken and no
lane is touched, so a sweep may run beside the trainer whose checkpoint it looks at.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from aegir_stream import codec
from aegir_stream.clock import SystemClock
from aegir_stream.disk import AppendHandle
from aegir_stream.errors import SinkClosedError
from aegir_stream.layout import RunDirectory
from aegir_stream.opening import closed_on_error
from aegir_stream.processes import this_process
from aegir_stream.sweep_events import SweepCell, SweepEnded, SweepEvent, SweepStarted
from aegir_stream.typing import Clock
from aegir_stream.views.sweep import SweepView
from aegir_stream.writer import SegmentWriter

__all__ = ["SweepLog"]

_LONGEST_REASON = 1000


class SweepLog:
    """Records one sweep in a run directory.

    Every append is visible to readers at once. What the disk does not take is kept and written with
    the next append. As a context manager it ends itself: as `failed` or `cancelled` by what passes
    through, as `cancelled` if nobody said how it ended. A process that dies leaves a sweep whose
    readers can tell that: it has no end, and nothing holds its file.

    Thread safety: one thread owns it.

    Args:
        run: the run directory, made when missing; `None` for a sweep that nobody will read again.
        started: how the sweep begins; name, time and process are filled in.
        clock: where time stamps come from.

    Attributes:
        started: how it began.
        grids: what was appended so far, as a reader has it.

    Raises:
        OSError: the file cannot be made or written.
    """

    def __init__(
        self, run: RunDirectory | None, started: SweepStarted, *, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._view = SweepView()
        self._unwritten: list[bytes] = []
        self._writer: SegmentWriter | None = None
        self.grids = self._view.initial()
        if run is None:
            self.started = _signed(started, "", now=self._clock.time())
            self._append([self.started])
            return
        sweep, handle = _made(run)
        self.started = _signed(started, sweep, now=self._clock.time())
        with closed_on_error(handle):
            self._writer = SegmentWriter(handle, control_lines=False)
            self._append([self.started])

    @property
    def sweep(self) -> str:
        """Name of the sweep; empty if it is not written down."""
        return self.started.sweep

    def append(self, cells: Iterable[SweepCell]) -> bool:
        """Append cells; tell whether the disk took them.

        Raises:
            SinkClosedError: the sweep has ended.
        """
        if self.grids.ended is not None:
            raise SinkClosedError(
                f"The sweep `{self.sweep}` has ended", hint="Append cells before its end"
            )
        try:
            self._append(cells)
        except OSError:
            return False
        return True

    def end(self, ended: SweepEnded) -> SweepEnded:
        """Say how the sweep ended and release its file; what was said first holds.

        Args:
            ended: how; the best cells, what was counted and the time are filled in.

        Raises:
            OSError: the disk did not take it; the file is released all the same.
        """
        if self.grids.ended is not None:
            return self.grids.ended
        concluded = replace(
            ended,
            best=self.grids.extremes(),
            cells=len(self.grids.cells),
            failed=self.grids.failed,
            ts=self._clock.time(),
        )
        try:
            self._append([concluded])
        finally:
            if self._writer:
                self._writer.close(None)
        return concluded

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the sweep, unless it has ended."""
        failed = isinstance(error, Exception)
        ended = SweepEnded(
            status="failed" if failed else "cancelled",
            reason=f"{error}"[:_LONGEST_REASON] if failed else None,
        )
        # What passes through says more than that its end could not be written.
        with contextlib.suppress(OSError):
            self.end(ended)

    def _append(self, events: Iterable[SweepEvent]) -> None:
        events = list(events)
        self.grids = self._view.fold(self.grids, events)
        if self._writer is None:
            return
        self._unwritten += map(codec.encode, events)
        # Again from the start after a failure: a cell that stands there twice counts once.
        self._writer.append(b"".join(self._unwritten), records=len(self._unwritten))
        self._unwritten = []


def _made(run: RunDirectory) -> tuple[str, AppendHandle]:
    """Return the name and the file of a new sweep, held by this process."""
    run.disk.make_directory(run.sweeps_path)
    newest = max((file.number for file in run.sweeps()), default=0)
    for number in itertools.count(newest + 1):
        file = run.sweep_file(number)
        try:
            handle = run.disk.append(file.path, exclusive=True)
        except FileExistsError:
            continue
        with closed_on_error(handle):
            handle.lock()
        return file.sweep, handle
    raise AssertionError("numbers do not end")


def _signed(started: SweepStarted, sweep: str, *, now: float) -> SweepStarted:
    process = this_process()
    return replace(
        started,
        sweep=sweep,
        ts=now,
        host=process.host,
        pid=process.pid,
        pid_started=process.started,
        pid_namespace=process.namespace,
    )
