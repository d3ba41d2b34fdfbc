"""Open a file for appending: held by this process alone, complete, begun with an `Open` line."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import msgspec

from aegir_stream.disk import AppendHandle
from aegir_stream.events import SCHEMA, Open
from aegir_stream.layout import STREAMS, RunDirectory, lane_name
from aegir_stream.tail import end_of_last_line
from aegir_stream.writer import SegmentWriter

__all__ = [
    "Authorship",
    "begin",
    "closed_on_error",
    "end_torn_line",
    "hold",
    "open_feed",
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


def open_feed(run: RunDirectory, author: Authorship, *, stream: str, attempt: int) -> SegmentWriter:
    """Open a file that every attempt appends to, completing a torn last line.

    Raises:
        OSError: the file cannot be opened or written; nothing stays open.
    """
    lane, handle = _first_free(run, author, stream=stream)
    opening = author.opening(stream=stream, lane=lane, attempt=attempt)
    with closed_on_error(handle):
        torn = end_torn_line(handle)
    opening = msgspec.structs.replace(opening, recovered_torn_bytes=torn)
    return begin(run, author, handle=handle, opening=opening)


def hold(run: RunDirectory, *, stream: str, lane: str) -> AppendHandle | None:
    """Open a lane's live file, made if it is missing; `None` if another process writes it.

    The file that is locked is the one that stands at the path: a writer that sealed it between our
    opening and our locking has moved on to another.
    """
    path = run.live(stream, lane)
    while True:
        handle = run.disk.append(path)
        with closed_on_error(handle):
            locked = handle.lock()
            if locked and _stands(run, handle):
                return handle
        handle.close()
        if not locked:
            return None


def begin(
    run: RunDirectory, author: Authorship, *, handle: AppendHandle, opening: Open
) -> SegmentWriter:
    """Write the `Open` line and return the writer.

    Raises:
        OSError: the line was not written; the file is closed, and removed if it is empty.
    """
    writer = SegmentWriter(
        handle,
        rank=author.rank,
        attempt=opening.attempt,
        control_lines=author.control_lines and STREAMS[opening.stream].control_lines,
    )
    try:
        writer.control(opening)
    except OSError:
        if not handle.size():
            run.disk.remove(handle.path)
        handle.close()
        raise
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
    try:
        yield
    except OSError:
        handle.close()
        raise


def step_of(checkpoint: str | None) -> int | None:
    """Return the step in a checkpoint's name, `None` if there is none."""
    digits = (checkpoint or "").rpartition("-")[2]
    return int(digits) if digits.isdigit() else None


def _first_free(run: RunDirectory, author: Authorship, *, stream: str) -> tuple[str, AppendHandle]:
    """Return the first lane of the rank that no other process writes, and its file, held."""
    lanes = (lane_name(author.rank, writer=number) for number in itertools.count(1))
    held = ((lane, hold(run, stream=stream, lane=lane)) for lane in lanes)
    return next((lane, handle) for lane, handle in held if handle)


def _stands(run: RunDirectory, handle: AppendHandle) -> bool:
    """Tell whether an open file is still what its path names."""
    try:
        return run.disk.read(handle.path, offset=0, size=0).inode == handle.inode()
    except FileNotFoundError:
        return False
