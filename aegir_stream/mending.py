"""Write a clean copy of one file: what can be trusted, and a gap where something was left out."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aegir_stream import codec
from aegir_stream.appends import Span, Tally
from aegir_stream.disk import AppendHandle
from aegir_stream.events import Batch, Control, Gap, Open, Seal
from aegir_stream.inventory import Content, Line, LogFile, is_trailed, spans
from aegir_stream.remnants import Remnant, is_left_by_a_kill, remnants

__all__ = ["mend"]

_REASON = "left out by aegir repair: "


def mend(file: LogFile, content: Content, copy: AppendHandle) -> Tally:
    """Write what can be trusted of a file; return the data lines that it is.

    Appends that agree with their checksum are copied with it. Whole lines that a killed writer left
    without one get one. Everything else becomes a `Gap`, and the seal counts what is left.

    Raises:
        OSError: the file cannot be read, or the copy not be written.
    """
    mending = _Mending(file, content, copy)
    if is_trailed(file, content):
        mending.copy_spans()
    else:
        mending.copy_lines()
    return mending.total


class _Mending:
    """A copy that is being written."""

    def __init__(self, file: LogFile, content: Content, copy: AppendHandle) -> None:
        self._file = file
        self._content = content
        self._copy = copy
        self._opening: Open | None = None
        self._group = Tally()
        self._steps: set[int] = set()
        self._sealed = False
        self.total = Tally()

    def copy_spans(self) -> None:
        """Copy a file whose appends carry checksums."""
        for span in spans(self._content, growing=False):
            match span.kind:
                case "append":
                    self._copy_data(span.start, span.data_end)
                    self._write(self._content.pieces(span.data_end, span.end))
                case "control":
                    self._copy_control(span)
                case _ if is_left_by_a_kill(span, self._file):
                    self._copy_remnants(span)
                case _:
                    self._leave_out(span.start, span.end, span.reason, records=span.records)
        if self._file.checkpoint and not self._sealed:
            self._seal(self._file.checkpoint)

    def copy_lines(self) -> None:
        """Copy a file without control lines."""
        for remnant in remnants(self._file, self._content, start=0, end=self._content.size):
            if remnant.state == "whole":
                self._copy_data(remnant.line.offset, remnant.line.offset + remnant.line.length)

    # -- parts -------------------------------------------------------------------------------------

    def _copy_control(self, span: Span) -> None:
        match span.control:
            case Seal() as seal:
                self._write_control(self._true(seal))
                self._sealed = True
                return
            case Open() as opening:
                self._opening = opening
        self._write(self._content.pieces(span.start, span.end))

    def _copy_remnants(self, span: Span) -> None:
        for remnant in remnants(self._file, self._content, start=span.start, end=span.end):
            line = remnant.line
            if remnant.state == "whole":
                self._group.add((line.data or b"") + b"\n")
                self._steps.add(codec.head(line.data or b"", self._file.stream.kind).step)
                self._copy_data(line.offset, line.offset + line.length)
            else:
                self._trail()
                self._leave_out_line(remnant)
        self._trail()

    def _trail(self) -> None:
        """Write the trailer of the whole lines that lacked one."""
        group, opening = self._group, self._opening
        if not group.records:
            return
        self._write_control(
            Batch(
                records=group.records,
                bytes=group.size,
                crc32=group.crc32,
                step=self._steps.pop() if len(self._steps) == 1 else None,
                rank=opening.rank if opening else 0,
                attempt=opening.attempt if opening else 1,
            )
        )
        self._group, self._steps = Tally(), set()

    def _leave_out_line(self, remnant: Remnant) -> None:
        line = remnant.line
        what = "an unfinished line" if remnant.state == "torn" else "a line that is no record"
        self._leave_out(line.offset, line.offset + line.length, what, records=_records_in(line))

    def _leave_out(self, start: int, end: int, why: str, *, records: int | None = None) -> None:
        what = f"{end - start} bytes at offset {start} of {self._content.path.name}: {why}"
        self._write_control(Gap(records=records or 0, reason=_REASON + what))

    def _seal(self, checkpoint: str) -> None:
        """Write the seal that is missing."""
        digits = checkpoint.rpartition("-")[2]
        segment = self._opening.segment if self._opening else self._file.segment
        self._write_control(
            self._true(
                Seal(
                    checkpoint=checkpoint,
                    step=int(digits),
                    segment=segment or 0,
                    records=0,
                    bytes=0,
                    crc32=0,
                )
            )
        )

    def _true(self, seal: Seal) -> Seal:
        total = self.total
        return msgspec.structs.replace(
            seal, records=total.records, bytes=total.size, crc32=total.crc32
        )

    # -- bytes -------------------------------------------------------------------------------------

    def _copy_data(self, start: int, end: int) -> None:
        for piece in self._content.pieces(start, end):
            self.total.add(piece)
            self._write([piece])

    def _write_control(self, event: Control) -> None:
        self._write([codec.encode(event)])

    def _write(self, pieces: list[bytes] | Iterator[bytes]) -> None:
        for piece in pieces:
            written = 0
            while written < len(piece):
                written += self._copy.write(memoryview(piece)[written:])


def _records_in(line: Line) -> int:
    """Return how many records a line was that is none: a control line was none."""
    return 0 if line.data is not None and codec.is_control(line.data) else 1
