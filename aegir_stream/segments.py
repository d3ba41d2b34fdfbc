"""The segments that one writer appends to: opened, recovered, sealed, set aside.

A *chain* is a lane of the SAE stream: a live tail that checkpoints seal, each segment naming the
one it continues. A *feed* is a single file that every attempt appends to.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
from msgspec.structs import replace

from aegir_stream import codec
from aegir_stream.disk import AppendHandle
from aegir_stream.events import SCHEMA, Close, Open, Seal
from aegir_stream.layout import STREAMS, RunDirectory, lane_name
from aegir_stream.lineage import read_header
from aegir_stream.tail import end_of_last_line
from aegir_stream.typing import Sealed
from aegir_stream.writer import SegmentWriter

__all__ = ["Authorship", "SegmentChain", "open_feed"]

_HEAD_BYTES = 4096
_LOOK_BACK_BYTES = 1 << 16


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


class SegmentChain:
    """The live tail of one lane, and the segments that it leaves behind.

    Opening sets aside what an earlier attempt left unsealed. A lane that another live process
    holds is left alone: this writer takes the next lane name of its rank.

    Args:
        run: the run directory.
        author: who writes.
        stream: a sealed stream.
    """

    def __init__(
        self, run: RunDirectory, author: Authorship, *, stream: str = "sae_features"
    ) -> None:
        self._run = run
        self._author = author
        self._stream = stream
        self._unpublished: Seal | None = None
        self.lane = ""
        self.attempt = 1
        self.segment = 0
        for number in itertools.count(1):
            self.lane = lane_name(author.rank, writer=number)
            if self._open():
                break

    @property
    def path(self) -> Path:
        """Path of the live tail."""
        return self._run.live(self._stream, self.lane)

    @property
    def writer(self) -> SegmentWriter:
        """The writer of the live tail.

        Raises:
            OSError: the last checkpoint's segment could still not be put in its places.
        """
        if self._unpublished:
            self._publish(self._unpublished)
        return self._writer

    def seal(self, *, checkpoint: str, step: int) -> Sealed:
        """Close the segment as a checkpoint's snapshot and go on with a fresh one.

        The sealed segment appears as `checkpoint-N/sae_features.jsonl` and under `history/` before
        the live path moves on, so a reader finds every record at every moment.

        Raises:
            OSError: a step failed; it is done again before the next write.
        """
        seal = self.writer.seal(checkpoint=checkpoint, step=step, segment=self.segment)
        self._unpublished = seal
        self._publish(seal)
        return Sealed(
            checkpoint=seal.checkpoint,
            step=seal.step,
            segment=seal.segment,
            records=seal.records,
            bytes=seal.bytes,
            crc32=seal.crc32,
        )

    def close(self, status: str) -> None:
        """Write the closing mark and release the file."""
        self.writer.close(status)

    # -- opening -----------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Start a segment on the lane; `False` if another process writes there."""
        left = self._left_behind()
        if left is None:
            return self._start_first()
        if not left.lock():
            left.close()
            return False
        try:
            header, torn = self._set_aside(left)
            self._number_after(header)
            self._writer = self._start(self._continued(), recovered_torn_bytes=torn)
        finally:
            left.close()
        return True

    def _left_behind(self) -> AppendHandle | None:
        if not self._run.disk.exists(self.path):
            return None
        return self._run.disk.append(self.path)

    def _start_first(self) -> bool:
        self._number_after(None)
        try:
            handle = self._run.disk.append(self.path, exclusive=True)
        except FileExistsError:
            return self._open()
        if not handle.lock():
            handle.close()
            return False
        self._writer = self._begin(handle, self._continued())
        return True

    def _number_after(self, header: Open | None) -> None:
        history = self._run.history(self.lane)
        if header is None and history:
            header = read_header(self._run, history[-1].path)
        last = max([header.segment if header else 0, *(file.segment for file in history)])
        self.segment = last + 1
        self.attempt = header.attempt + 1 if header else 1

    def _continued(self) -> int | None:
        """Return the segment sealed at the checkpoint that this attempt resumed from."""
        sealed = [f for f in self._run.history(self.lane) if f.label == self._author.continues]
        return sealed[-1].segment if sealed else None

    def _set_aside(self, left: AppendHandle) -> tuple[Open | None, int]:
        """Move what an earlier attempt left to `history/`; return its header and torn bytes."""
        torn = _end_torn_line(left)
        header = codec.decode_opening(left.read(0, _HEAD_BYTES))
        last = codec.decode_control(_last_line(left))
        if not isinstance(last, Seal | Close) and self._author.control_lines:
            left.write(codec.encode(Close(status="abandoned")))
        label = last.checkpoint if isinstance(last, Seal) else "abandoned"
        history = self._run.history(self.lane)
        number = header.segment if header else len(history) + 1
        if all(file.segment != number for file in history):
            self._keep(number, label)
        if isinstance(last, Seal) and self._run.disk.exists(self._run.root / label):
            self._run.disk.share(self.path, self._run.snapshot(label, self.lane))
        return header, torn

    # -- moving on ---------------------------------------------------------------------------------

    def _publish(self, seal: Seal) -> None:
        self._keep(seal.segment, seal.checkpoint)
        snapshot = self._run.snapshot(seal.checkpoint, self.lane)
        self._run.disk.make_directory(snapshot.parent)
        self._run.disk.share(self.path, snapshot)
        sealed = self._writer
        self.segment = seal.segment + 1
        self._writer = self._start(seal.segment)
        self._unpublished = None
        sealed.close(None)

    def _keep(self, segment: int, label: str) -> None:
        self._run.disk.make_directory(self._run.history_path)
        self._run.disk.share(self.path, self._run.closed(segment, label, self.lane))

    def _start(self, previous: int | None, *, recovered_torn_bytes: int = 0) -> SegmentWriter:
        """Put a fresh segment in the place of the live tail, atomically."""
        temporary = self.path.with_name(f".{self.path.name}.{self.segment:05d}.tmp")
        self._run.disk.remove(temporary)
        handle = self._run.disk.append(temporary, exclusive=True)
        try:
            handle.lock()
            writer = self._begin(handle, previous, recovered_torn_bytes=recovered_torn_bytes)
            self._run.disk.replace(temporary, self.path)
        except OSError:
            handle.close()
            raise
        return writer

    def _begin(
        self, handle: AppendHandle, previous: int | None, *, recovered_torn_bytes: int = 0
    ) -> SegmentWriter:
        writer = _writer_of(self._author, handle, stream=self._stream, attempt=self.attempt)
        opening = _opening(self._author, stream=self._stream, lane=self.lane)
        writer.control(
            replace(
                opening,
                segment=self.segment,
                attempt=self.attempt,
                previous=previous,
                recovered_torn_bytes=recovered_torn_bytes,
            )
        )
        return writer


def open_feed(run: RunDirectory, author: Authorship, *, stream: str, attempt: int) -> SegmentWriter:
    """Open a file that every attempt appends to, completing a torn last line.

    Raises:
        OSError: the file cannot be opened or written.
    """
    for number in itertools.count(1):
        lane = lane_name(author.rank, writer=number)
        handle = run.disk.append(run.live(stream, lane))
        if handle.lock():
            break
        handle.close()
    torn = _end_torn_line(handle)
    writer = _writer_of(author, handle, stream=stream, attempt=attempt)
    opening = _opening(author, stream=stream, lane=lane)
    writer.control(replace(opening, attempt=attempt, recovered_torn_bytes=torn))
    return writer


def _writer_of(
    author: Authorship, handle: AppendHandle, *, stream: str, attempt: int
) -> SegmentWriter:
    return SegmentWriter(
        handle,
        rank=author.rank,
        attempt=attempt,
        control_lines=author.control_lines and STREAMS[stream].control_lines,
    )


def _opening(author: Authorship, *, stream: str, lane: str) -> Open:
    return Open(
        log=author.log,
        stream=stream,
        lane=lane,
        segment=1,
        attempt=1,
        rank=author.rank,
        schema=SCHEMA,
        writer=author.writer,
        continues=author.continues,
        continues_step=author.continues_step,
        precision=author.precision if STREAMS[stream].sealed else {},
    )


def _end_torn_line(handle: AppendHandle) -> int:
    """End an unfinished last line with a newline; return how long it was."""
    size = handle.size()
    torn = size - end_of_last_line(handle.read, size)
    if torn:
        handle.write(b"\n")
    return torn


def _last_line(handle: AppendHandle) -> bytes:
    size = handle.size()
    tail = handle.read(max(0, size - _LOOK_BACK_BYTES), _LOOK_BACK_BYTES)
    return tail[:-1].rpartition(b"\n")[2]
