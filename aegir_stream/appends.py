r"""Which stretches of a file agree with the checksums that stand behind them.

A writer ends every append with a `Batch` line, its trailer. A scan goes from one control line to
the next and compares; it holds one piece of the file at a time, however long an append is. A
control line that a kill cut short or that damage made unreadable counts with the bytes around it.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from aegir_stream import codec
from aegir_stream.events import Batch, Control
from aegir_stream.tail import LINE_LIMIT_BYTES

__all__ = ["Read", "Scan", "Span", "SpanKind", "Tally", "last_control_line"]

Read: TypeAlias = Callable[[int, int], bytes]
"""Returns up to `size` bytes from `offset`, called as ``read(offset, size)``."""

SpanKind: TypeAlias = Literal["append", "control", "untrailed", "damaged"]

_PIECE_BYTES = 256 << 10
_OVERLAP = 64 << 10
_LINE_START = b"\n" + codec.CONTROL_PREFIX


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a file, and how it stands with the checksums.

    Attributes:
        kind: `append`: data lines and a trailer that agrees with them; `control`: another control
            line; `untrailed`: bytes behind which something else than a trailer stands; `damaged`:
            bytes that their trailer does not agree with, or that no trailer covers.
        start: offset of the first byte.
        end: offset behind the last byte.
        data_end: offset behind the data lines; the trailer follows.
        control: the control line that it ends with; of an `untrailed` span the one that follows it,
            absent at the end of the file and where a later version wrote it.
        records: number of data lines, where it is known.
        reason: what is wrong; empty if nothing is.
    """

    kind: SpanKind
    start: int
    end: int
    data_end: int
    control: Control | None = None
    records: int | None = None
    reason: str = ""


class Tally(msgspec.Struct):
    """Data lines: how many, how many bytes, their checksum."""

    records: int = 0
    size: int = 0
    crc32: int = 0

    def add(self, data: bytes) -> None:
        """Count data, which may end anywhere in a line."""
        self.records += data.count(b"\n")
        self.size += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


class Scan:
    """Goes through a file from a place behind a control line, or from its beginning.

    Args:
        start: that place.
        total: counts the data lines of all appends that agree, where that is wanted.

    Attributes:
        start: offset behind the last control line; everything before it is judged.
        at: offset up to which the file was read.
        whole: offset behind the last whole line.
    """

    def __init__(self, start: int = 0, *, total: Tally | None = None) -> None:
        self.start = start
        self.at = start
        self.whole = start
        self._total = total
        self._since = Tally()
        self._within = msgspec.structs.replace(total) if total else None
        self._inside_line = False
        self._found: list[Span] = []

    def read_on(self, read: Read) -> list[Span] | None:
        """Take in the next piece; return what it completes, `None` if nothing whole is left.

        An unfinished line waits for its end. What `read` raises leaves the scan where it was.
        """
        data = read(self.at, _PIECE_BYTES)
        if self._inside_line or b"\n" not in data:
            if not self._long_line(data, read):
                return None
        else:
            self._lines(data[: data.rindex(b"\n") + 1], read)
        if not self._inside_line:
            self.whole = self.at
        found, self._found = self._found, []
        return found

    def rest(self, size: int) -> Span | None:
        """Return what stands behind the last control line of a file that grows no more."""
        return self._untrailed(size) if size > self.start else None

    # -- lines -------------------------------------------------------------------------------------

    def _long_line(self, data: bytes, read: Read) -> bool:
        """Take in a part of a line that is longer than one piece; `False` if it has to wait."""
        if self._inside_line:
            end = data.find(b"\n") + 1
            self._inside_line = not end
            self._take(data[: end or len(data)])
            return bool(data)
        if len(data) < _PIECE_BYTES:
            return False
        if codec.is_control(data):
            data = read(self.at, LINE_LIMIT_BYTES)
            end = data.find(b"\n") + 1
            if end or len(data) < LINE_LIMIT_BYTES:
                self._lines(data[:end], read)
                return bool(end)
        self._inside_line = True
        self._take(data)
        return True

    def _lines(self, data: bytes, read: Read) -> None:
        """Take in whole lines."""
        at = 0
        while at < len(data):
            begin = _next_control_line(data, at)
            self._take(data[at:begin])
            if begin == len(data):
                return
            at = data.index(b"\n", begin) + 1
            line = data[begin : at - 1]
            control = codec.decode_control(line)
            if control or codec.is_readable_control(line):
                self._judge(control, self.at + at - begin, read)
            else:
                self._take(data[begin:at])

    def _take(self, data: bytes) -> None:
        self.at += len(data)
        self._since.add(data)
        if self._within:
            self._within.add(data)

    # -- judgement ---------------------------------------------------------------------------------

    def _judge(self, control: Control | None, end: int, read: Read) -> None:
        """Compare what stands since the last control line with the next, which ends at `end`."""
        start, since = self.start, self._since
        if since.size and control is None:
            # A writer ends what it has begun before it writes anything else: a damaged trailer.
            self._found.append(self._damaged(end, "the checksum of these bytes cannot be read"))
        elif not isinstance(control, Batch):
            if since.size:
                self._found.append(self._untrailed(self.at, control))
            self._found.append(
                Span(kind="control", start=self.at, end=end, data_end=self.at, control=control)
            )
        elif _agrees(control, since):
            self._adopt(self._within)
            self._found.append(self._append(control, start, end))
        elif within := self._tail(control, read):
            start = self.at - control.bytes
            self._found.append(self._damaged(start, "no checksum covers these bytes"))
            self._adopt(within)
            self._found.append(self._append(control, start, end))
        else:
            reason = "these bytes do not agree with their checksum"
            known = control.records if control.bytes == since.size else None
            self._found.append(self._damaged(end, reason, control=control, records=known))
        self._go_on(end)

    def _tail(self, batch: Batch, read: Read) -> Tally | None:
        """Return the total if the last bytes before a trailer agree with it; else `None`.

        An earlier trailer, or the newline before it, was damaged then: that costs its own append.
        """
        if not 0 <= batch.bytes < self._since.size:
            return None
        tail, total = Tally(), msgspec.structs.replace(self._total or Tally())
        offset = self.at - batch.bytes
        while offset < self.at:
            data = read(offset, min(_PIECE_BYTES, self.at - offset))
            if not data:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            offset += len(data)
            tail.add(data)
            total.add(data)
        return total if _agrees(batch, tail) else None

    def _adopt(self, total: Tally | None) -> None:
        """Count an append that agrees."""
        if self._total and total:
            self._total.records, self._total.size = total.records, total.size
            self._total.crc32 = total.crc32

    def _go_on(self, start: int) -> None:
        self.start = self.at = start
        self._since = Tally()
        self._within = msgspec.structs.replace(self._total) if self._total else None

    # -- spans -------------------------------------------------------------------------------------

    def _append(self, batch: Batch, start: int, end: int) -> Span:
        return Span(
            kind="append",
            start=start,
            end=end,
            data_end=self.at,
            control=batch,
            records=batch.records,
        )

    def _damaged(
        self, end: int, reason: str, *, control: Control | None = None, records: int | None = None
    ) -> Span:
        return Span(
            kind="damaged",
            start=self.start,
            end=end,
            data_end=min(end, self.at),
            control=control,
            records=records,
            reason=reason,
        )

    def _untrailed(self, end: int, follower: Control | None = None) -> Span:
        return Span(
            kind="untrailed",
            start=self.start,
            end=end,
            data_end=end,
            control=follower,
            records=self._since.records,
            reason="no checksum stands behind these bytes",
        )


def last_control_line(read: Read, before: int) -> int:
    """Return the offset behind the last readable control line that ends at `before` or sooner.

    0 if there is none. `before` is the end of a line.
    """
    end = before
    while end > 0:
        start = max(0, end - _PIECE_BYTES)
        data = read(start, end - start)
        at = len(data)
        while (begin := _last_begin(data, at, whole=start == 0)) is not None:
            line, newline, _ = data[begin:].partition(b"\n")
            if newline and codec.is_readable_control(line):
                return start + begin + len(line) + 1
            at = begin
        # A line that is cut in two here is seen whole by an overlapping look.
        end = start + _OVERLAP if start else 0
    return 0


def _last_begin(data: bytes, before: int, *, whole: bool) -> int | None:
    """Return where the last control line begins that begins before an index, `None` if none does.

    `whole` says that `data` begins with a line.
    """
    found = data.rfind(_LINE_START, 0, before)
    if found >= 0:
        return found + 1
    return 0 if whole and before and codec.is_control(data) else None


def _next_control_line(data: bytes, at: int) -> int:
    """Return where the next control line begins at a line's beginning or behind it."""
    if data.startswith(codec.CONTROL_PREFIX, at):
        return at
    found = data.find(_LINE_START, at)
    return found + 1 if found >= 0 else len(data)


def _agrees(batch: Batch, data: Tally) -> bool:
    return (batch.records, batch.bytes, batch.crc32) == (data.records, data.size, data.crc32)
