r"""Append to one segment: whole lines, a trailer after every append, nothing ever truncated.

The newline is the commit mark. When a write stops halfway through a line, the rest of that line is
written first as soon as writing works again, then the trailer of the part that was kept, then a
`Gap` that says what was lost; until then later records are dropped and counted.
"""

from __future__ import annotations

import zlib

import msgspec

from aegir_stream import codec
from aegir_stream.disk import AppendHandle
from aegir_stream.errors import WriteLostError
from aegir_stream.events import Batch, Close, Control, Gap, Seal

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

    @property
    def records(self) -> int:
        """Number of data records in the segment, as far as this writer wrote them."""
        return self._segment.records

    def append(
        self, data: bytes, *, records: int, step: int | None = None, pass_: str | None = None
    ) -> None:
        """Append `records` whole lines and their trailer.

        Raises:
            WriteLostError: the file took only a part; says how many records are lost.
        """
        kept = 0
        try:
            self._settle()
            self._step, self._pass = step, pass_
            before = self._segment.records
            try:
                self._write(data, record=True)
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
            self._write(codec.encode(event), record=False)

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

    def close(self, status: str | None) -> None:
        """Write the closing mark unless `status` is `None`, and release the file. Idempotent.

        Raises:
            OSError: the mark could not be written; the file is released all the same.
        """
        try:
            if status is not None:
                self.control(Close(status=status, records=self._segment.records))
        finally:
            self._handle.close()

    # -- after a failed write ----------------------------------------------------------------------

    def _settle(self) -> None:
        """Complete what a failed write left behind, and report what was lost."""
        if self._torn:
            self._write(self._torn, record=self._torn_record, resumed=True)
        if self._append.records:
            self._trail()
        if self._lost:
            self._commit(self._lost)
            self._lost = None

    def _lose(self, records: int, step: int | None, error: OSError) -> WriteLostError:
        if records:
            lost = self._lost or Gap(records=0, reason="", first_step=step)
            self._lost = msgspec.structs.replace(
                lost, records=lost.records + records, reason=_reason(error), last_step=step
            )
        return WriteLostError(
            f"{records} records could not be written to `{self._handle.path}`: {_reason(error)}",
            records_lost=records,
            hint="Recording goes on as soon as the file can be written again",
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
            self._write(codec.encode(event), record=False)
        except OSError:
            if self._torn:
                self._append = _Tally() if isinstance(event, Batch) else self._append
                self._lost = None if isinstance(event, Gap) else self._lost
            raise

    def _write(self, data: bytes, *, record: bool, resumed: bool = False) -> None:
        """Write all of `data`; on failure remember the rest of the line that was cut.

        `resumed` says that `data` is itself such a rest.
        """
        view, written = memoryview(data), 0
        self._torn = b""
        try:
            while written < len(data):
                written += self._handle.write(view[written : written + _PIECE_BYTES])
        except OSError:
            if resumed or (written and data[written - 1 : written] != b"\n"):
                self._torn = data[written : data.index(b"\n", written) + 1]
                self._torn_record = record
            raise
        finally:
            if record:
                self._count(data[:written])

    def _count(self, data: bytes) -> None:
        records = data.count(b"\n")
        self._segment.add(data, records=records)
        self._append.add(data, records=records)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
