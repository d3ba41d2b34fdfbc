r"""Append to one segment: whole lines, a trailer after every append, nothing ever truncated.

The newline is the commit mark. When a write stops halfway through a line, the rest of that line is
written first as soon as writing works again, then the trailer of the part that was kept, then a
`Gap` that says what was lost; until then later records are dropped and counted.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec

from aegir_stream import codec
from aegir_stream.disk import AppendHandle, Disk
from aegir_stream.errors import MalformedEventError, WriteLostError
from aegir_stream.events import Batch, Close, Control, Gap, Note, Seal

__all__ = ["SegmentWriter"]

_PIECE_BYTES = 1 << 20
"""Larger single writes hit 18-27 ms at p90 on ext4 (docs/explanation/performance.md)."""


class _Tally(msgspec.Struct):
    """Data lines written: how many records, how many bytes, their checksum."""

    records: int = 0
    size: int = 0
    crc32: int = 0

    def add(self, data: bytes, *, records: int) -> None:
        self.records += records
        self.size += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


class SegmentWriter:
    """Writes one open file. One thread owns it.

    Args:
        handle: the file, opened for appending.
        rank: process index, for the trailers.
        attempt: attempt number, for the trailers.
        control_lines: whether to write control lines at all.

    Attributes:
        doubtful: whether a sync has failed, so that nobody can tell any more what is on the medium.
    """

    def __init__(
        self, handle: AppendHandle, *, rank: int = 0, attempt: int = 1, control_lines: bool = True
    ) -> None:
        self._handle = handle
        self._rank = rank
        self._attempt = attempt
        self._control_lines = control_lines
        self._segment = _Tally()
        self._append = _Tally()
        self._step: int | None = None
        self._pass: str | None = None
        self._torn = b""
        self._torn_record = False
        self._lost: Gap | None = None
        self._seal: Seal | None = None
        self._ended = False
        self._unsynced = False
        self.doubtful = False

    @property
    def path(self) -> Path:
        """The file, under the name by which it was opened."""
        return self._handle.path

    @property
    def records(self) -> int:
        """Number of data records in the segment, as far as this writer wrote them."""
        return self._segment.records

    def stands_at(self, path: Path, disk: Disk) -> bool:
        """Tell whether this file is what a path names.

        Raises:
            OSError: nothing stands there, or it cannot be read.
        """
        return disk.read(path, offset=0, size=0).inode == self._handle.inode()

    def append(
        self, data: bytes, *, records: int, step: int | None = None, pass_: str | None = None
    ) -> None:
        """Append `records` whole lines and their trailer.

        Raises:
            MalformedEventError: `data` is something else; nothing of it was written.
            WriteLostError: the file took only a part; says how many records are lost.
        """
        _check(data, records)
        kept = 0
        try:
            self._settle()
            self._step, self._pass = step, pass_
            before = self._segment.records
            try:
                self._write(data, records=records)
            finally:
                kept = self._segment.records - before + (self._torn_record and bool(self._torn))
            self._trail()
        except OSError as error:
            raise self._lose(records - kept, step, error) from error

    def control(self, event: Control) -> None:
        """Write a control line, if this segment has any.

        Raises:
            OSError: the file did not take it; what it took of it is completed later.
        """
        self._settle()
        if self._control_lines:
            self._write(codec.encode(event))

    def mark(self, event: Gap | Note) -> None:
        """Write something for the readers. Once its first byte is out it counts as written.

        Raises:
            OSError: the file took nothing of it.
        """
        self._settle()
        try:
            self.control(event)
        except OSError:
            if not self._torn:
                raise

    def seal(self, *, checkpoint: str, step: int, segment: int) -> Seal:
        """Write the seal as the last line and return it; called again, finish what failed.

        Raises:
            OSError: the file did not take it, or only a part of it.
        """
        self._settle()
        if self._seal:
            return self._seal
        tally = self._segment
        seal = Seal(
            checkpoint=checkpoint,
            step=step,
            segment=segment,
            records=tally.records,
            bytes=tally.size,
            crc32=tally.crc32,
        )
        try:
            self.control(seal)
        except OSError:
            self._seal = seal if self._torn else None
            raise
        self._seal = seal
        return seal

    def sync(self) -> None:
        """Return when everything written so far is on the medium, at once if it is.

        Raises:
            OSError: it may not be. The file is `doubtful` from then on, and never synced again: the
                system forgets what it failed to write, and would report success.
        """
        if not self._unsynced or self.doubtful:
            return
        try:
            self._handle.sync()
        except OSError:
            self.doubtful = True
            raise
        self._unsynced = False

    def end(self, status: str) -> None:
        """Write the closing mark, once.

        Raises:
            OSError: it could not be written.
        """
        if not self._ended:
            self.control(Close(status=status, records=self._segment.records))
            self._ended = True

    def inherit(self, left: SegmentWriter) -> None:
        """Tell in this file what the one that was left for it has lost and could not tell."""
        self._lost = left._lost
        if left._torn and left._torn_record:
            self._add_lost(1, left._step, "cut off in a file that was left")

    def close(self, status: str | None) -> None:
        """Write the closing mark unless `status` is `None`, and release the file. Idempotent.

        Raises:
            OSError: the mark could not be written; the file is released all the same.
        """
        try:
            if status is not None:
                self.end(status)
        finally:
            self._handle.close()

    # -- after a failed write ----------------------------------------------------------------------

    def _settle(self) -> None:
        """Complete what a failed write left behind, and report what was lost."""
        if self._torn:
            self._write(self._torn, records=int(self._torn_record), resumed=True)
        if self._append.records:
            self._trail()
        if self._lost:
            self._commit(self._lost)
            self._lost = None

    def _lose(self, records: int, step: int | None, error: OSError) -> WriteLostError:
        if records:
            self._add_lost(records, step, _reason(error))
        return WriteLostError(
            f"{records} records could not be written to `{self._handle.path}`: {_reason(error)}",
            records_lost=records,
            hint="Recording goes on as soon as the file can be written again",
        )

    def _add_lost(self, records: int, step: int | None, reason: str) -> None:
        lost = self._lost or Gap(records=0, reason="", first_step=step)
        self._lost = msgspec.structs.replace(
            lost, records=lost.records + records, reason=reason, last_step=step
        )

    # -- bytes -------------------------------------------------------------------------------------

    def _trail(self) -> None:
        tally = self._append
        self._commit(
            Batch(
                records=tally.records,
                bytes=tally.size,
                crc32=tally.crc32,
                step=self._step,
                rank=self._rank,
                attempt=self._attempt,
                pass_=self._pass,
            )
        )
        self._append = _Tally()

    def _commit(self, event: Control) -> None:
        """Write a control line; once its first byte is out, its rest is only a torn line's rest."""
        if not self._control_lines:
            return
        try:
            self._write(codec.encode(event))
        except OSError:
            if self._torn:
                self._append = _Tally() if isinstance(event, Batch) else self._append
                self._lost = None if isinstance(event, Gap) else self._lost
            raise

    def _write(self, data: bytes, *, records: int = 0, resumed: bool = False) -> None:
        """Write all of `data`; on failure remember the rest of the line that was cut.

        `records` is how many records it holds, `resumed` says that it is itself such a rest.
        """
        view, written = memoryview(data), 0
        self._torn = b""
        self._unsynced = True
        try:
            while written < len(data):
                written += self._handle.write(view[written : written + _PIECE_BYTES])
        except OSError:
            if resumed or (written and data[written - 1 : written] != b"\n"):
                self._torn = data[written : data.index(b"\n", written) + 1]
                self._torn_record = bool(records)
            raise
        finally:
            if records:
                whole = written == len(data)
                self._count(data[:written], records if whole else data.count(b"\n", 0, written))

    def _count(self, data: bytes, records: int) -> None:
        self._segment.add(data, records=records)
        self._append.add(data, records=records)


def _check(data: bytes, records: int) -> None:
    """Refuse what would not be whole lines: it would spoil the line behind it as well."""
    lines = data.count(b"\n")
    if lines != records or (data and not data.endswith(b"\n")):
        raise MalformedEventError(
            f"Expected {records} lines, each ended by a newline, got {lines} that end with "
            f"{data[-20:]!r}",
            hint="EventBatch.encode returns `records` JSON lines",
        )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
