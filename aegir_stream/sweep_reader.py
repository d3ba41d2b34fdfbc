"""Read the sweeps of a run while they are written, and tell which of them go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import msgspec

from aegir_stream import codec
from aegir_stream.clock import SystemClock
from aegir_stream.errors import MalformedEventError
from aegir_stream.layout import RunDirectory, SweepFile
from aegir_stream.liveness import Evidence, Status, judge
from aegir_stream.processes import Process, is_alive
from aegir_stream.sweep_events import SweepCell, SweepEnded, SweepEvent, SweepStarted
from aegir_stream.tail import Tail
from aegir_stream.typing import Clock
from aegir_stream.views.sweep import SweepGrids, SweepView

__all__ = ["SweepReader", "SweepStatus", "decode_sweep_event", "read_sweep"]

SweepStatus: TypeAlias = Literal["running", "finished", "failed", "cancelled", "died", "silent"]
"""`running`: it goes on, as far as is known. `finished`, `failed`, `cancelled`: it said so.
`died`: its process is gone and left no end. `silent`: nothing was written for too long."""

_WORDS: dict[Status, SweepStatus] = {
    "active": "running",
    "finished": "finished",
    "crashed": "died",
    "stalled": "silent",
}
_KINDS: dict[str, type[SweepStarted | SweepCell | SweepEnded]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(SweepEvent)
}


class SweepReader:
    """Reads what was appended to one sweep's file since the last look.

    An unfinished last line waits for its end. Fields and kinds of lines that are not known are
    passed over; lines that are no events are counted.

    Args:
        run: the run directory.
        file: the sweep's file; it need not be there yet.
        clock: tells for how long nothing was written.

    Attributes:
        sweep: name of the sweep.
        grids: what was read, folded.
        skipped: lines that were no events.
        lines: lines read, of whatever kind.
    """

    def __init__(self, run: RunDirectory, file: SweepFile, *, clock: Clock | None = None) -> None:
        self._run = run
        self._path = file.path
        self._clock = clock or SystemClock()
        self._view = SweepView()
        self.sweep = file.sweep
        self._begin()

    def poll(self) -> list[SweepEvent]:
        """Read what is new and return it; everything again if the file was replaced."""
        found = list(self._new())
        if self._replaced:
            self._begin()
            found = list(self._new())
        return found

    def status(self) -> SweepStatus:
        """Return whether the sweep goes on, or how it ended."""
        ended = self.grids.ended
        if ended is not None:
            return ended.status
        process = _process_of(self.grids.started)
        return _WORDS[
            judge(
                Evidence(
                    held=self._run.disk.is_leased(self._path),
                    alive=is_alive(process) if process else None,
                    quiet_s=self._quiet_s(),
                )
            )
        ]

    def _begin(self) -> None:
        self._tail = Tail(self._run.disk, self._path)
        self._replaced = False
        self.grids: SweepGrids = self._view.initial()
        self.skipped = 0
        self.lines = 0

    def _new(self) -> Iterator[SweepEvent]:
        while True:
            look = self._tail.look()
            self._replaced = look.outcome in {"replaced", "truncated"}
            self.lines += len(look.lines) + len(look.skipped)
            self.skipped += len(look.skipped)
            events = self._decoded(look.lines)
            self.grids = self._view.fold(self.grids, events)
            yield from events
            if look.outcome != "lines":
                return

    def _decoded(self, lines: Sequence[bytes]) -> list[SweepEvent]:
        events = []
        for line in lines:
            try:
                event = decode_sweep_event(line)
            except MalformedEventError:
                self.skipped += 1
            else:
                events += [event] if event else []
        return events

    def _quiet_s(self) -> float | None:
        try:
            status = self._run.disk.status(self._path)
        except OSError:
            return None
        return self._clock.time() - status.modified_ns / 1e9 if status else None


def read_sweep(run: RunDirectory, sweep: str) -> SweepReader | None:
    """Return a sweep of a run as it stands now, `None` if there is none of that name."""
    file = next((file for file in run.sweeps() if file.sweep == sweep), None)
    if file is None:
        return None
    reader = SweepReader(run, file)
    reader.poll()
    return reader


class _Tag(msgspec.Struct, frozen=True):
    type: str


_events: msgspec.json.Decoder[SweepEvent] = msgspec.json.Decoder(SweepEvent)


def decode_sweep_event(line: bytes) -> SweepEvent | None:
    """Return the event on a line; `None` if it is of a kind that a later version adds.

    Raises:
        MalformedEventError: it is no event.
    """
    try:
        return _events.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        kind = _KINDS.get(codec.decode(line, _Tag).type)
        # Non-finite values are spelled, which only the careful way reads.
        return codec.decode(line, kind) if kind else None


def _process_of(started: SweepStarted | None) -> Process | None:
    if started is None or started.host is None or started.pid is None:
        return None
    return Process(
        host=started.host,
        pid=started.pid,
        started=started.pid_started,
        namespace=started.pid_namespace,
    )
