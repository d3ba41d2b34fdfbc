"""Open a file for appending: held by this process alone, complete, begun with an `Open` line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from aegir_stream.disk import AppendHandle, Disk
from aegir_stream.events import SCHEMA, Open
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.tail import end_of_last_line
from aegir_stream.writer import SegmentWriter

__all__ = [
    "Authorship",
    "begin",
    "closed_on_error",
    "end_torn_line",
    "hold",
    "hold_file",
    "step_of",
]


class Authorship(msgspec.Struct, frozen=True, kw_only=True):
    """Who writes, and what the attempt continues; stands in every `Open` line.

    Attributes:
        log: identity of the run's log.
        rank: process index.
        writer: program and version.
        continues: checkpoint that the attempt resumed from.
        continues_step: its step.
        precision: declared significant digits, by field.
        control_lines: whether control lines are written.
    """

    log: str
    rank: int = 0
    writer: str = ""
    continues: str | None = None
    continues_step: int | None = None
    precision: dict[str, int] = {}
    control_lines: bool = True

    def opening(self, *, stream: str, lane: str, attempt: int) -> Open:
        """Return the `Open` line of a first segment."""
        return Open(
            log=self.log,
            stream=stream,
            lane=lane,
            segment=1,
            attempt=attempt,
            rank=self.rank,
            schema=SCHEMA,
            writer=self.writer,
            continues=self.continues,
            continues_step=self.continues_step,
            precision=self.precision if STREAMS[stream].sealed else {},
        )


def hold(run: RunDirectory, *, stream: str, lane: str) -> AppendHandle | None:
    """Open a lane's live file, made if it is missing; `None` if another process writes it."""
    return hold_file(run.disk, run.live(stream, lane))


def hold_file(disk: Disk, path: Path) -> AppendHandle | None:
    """Open a file for appending and take its lock, made if it is missing; `None` if that is taken.

    The file that is locked is the one that stands at the path: a writer that sealed it between our
    opening and our locking has moved on to another.
    """
    while True:
        handle = disk.append(path)
        with closed_on_error(handle):
            locked = handle.lock()
            if locked and _stands(disk, handle):
                return handle
        handle.close()
        if not locked:
            return None


def begin(author: Authorship, *, handle: AppendHandle, opening: Open) -> SegmentWriter:
    """Write the `Open` line and return the writer.

    Raises:
        OSError: the line was not written; the file is closed. It stays where it is: what is empty
            may be a link or a device that somebody put there.
    """
    writer = SegmentWriter(
        handle,
        rank=author.rank,
        attempt=opening.attempt,
        control_lines=author.control_lines and STREAMS[opening.stream].control_lines,
    )
    with closed_on_error(handle):
        writer.control(opening)
    return writer


def end_torn_line(handle: AppendHandle) -> int:
    """End an unfinished last line with a newline; return how long it was."""
    size = handle.size()
    torn = size - end_of_last_line(handle.read, size)
    if torn:
        handle.write(b"\n")
    return torn


@contextlib.contextmanager
def closed_on_error(handle: AppendHandle) -> Iterator[None]:
    """Close the file if what is done with it fails."""
    with contextlib.ExitStack() as stack:
        stack.callback(handle.close)
        yield
        stack.pop_all()


def step_of(checkpoint: str | None) -> int | None:
    """Return the step in a checkpoint's name, `None` if there is none."""
    digits = (checkpoint or "").rpartition("-")[2]
    return int(digits) if digits.isdigit() else None


def _stands(disk: Disk, handle: AppendHandle) -> bool:
    """Tell whether an open file is still what its path names."""
    try:
        return disk.read(handle.path, offset=0, size=0).inode == handle.inode()
    except FileNotFoundError:
        return False
