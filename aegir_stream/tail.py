r"""Follow one file from an offset, and never hand out a line before its ``\n``.

Each look opens, reads and closes the file: a reader holds nothing between looks. The size alone is
not trusted: the file's first line is its identity and is compared at every look.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from aegir_stream import codec
from aegir_stream.cursor import GUARD_BYTES, guard_of_end
from aegir_stream.disk import Disk, Reading
from aegir_stream.events import Batch, Open

__all__ = ["LINE_LIMIT_BYTES", "SHORTER", "Look", "Skipped", "Tail", "answer", "end_of_last_line"]

LINE_LIMIT_BYTES = 16 << 20
"""A line longer than this is skipped, in constant memory, and reported."""

_READ_BYTES = 256 << 10
_HEAD_BYTES = 4096
_LOOK_BACK_BYTES = 64 << 10
_LINE_OVERLAP = 1 << 10
SHORTER = "the file became shorter while it was read"

Outcome: TypeAlias = Literal["lines", "end", "missing", "replaced", "truncated", "failed"]


class Skipped(msgspec.Struct, frozen=True):
    """Bytes that were passed over: where they begin, how many, why, and the guard behind them."""

    offset: int
    length: int
    reason: str
    guard: int

    @property
    def end(self) -> int:
        """Offset behind them."""
        return self.offset + self.length


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at the file found.

    Attributes:
        outcome: `lines` were read and more may be there; `end`: whatever is complete was read;
            `missing`, `replaced` (another first line), `truncated` (shorter than what was read);
            `failed`: the system call failed, for `reason`.
        lines: the complete lines, without their newlines.
        ends: offset behind each line.
        skipped: what was passed over, behind the lines.
        unfinished: bytes behind the last newline, where the look reached the end of the file.
        size: how long a truncated file seems to be.
        reason: why it failed.
    """

    outcome: Outcome
    lines: tuple[bytes, ...] = ()
    ends: tuple[int, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unfinished: int = 0
    size: int = 0
    reason: str = ""


class Tail:
    """Reads a growing file line by line.

    Args:
        disk: the file system.
        path: the file; may be set to another name of the same file later.
        offset: where to start, behind a line.
        identity: the file's first line, newline included; empty to take what stands there.
        inode: (device, inode) of the file; guards its identity while that is empty.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        *,
        offset: int = 0,
        identity: bytes = b"",
        inode: tuple[int, int] | None = None,
    ) -> None:
        self._disk = disk
        self.path = path
        self.offset = offset
        self.identity = identity
        self._inode = inode
        self._searched = 0

    def look(self, *, until: int | None = None) -> Look:
        """Read the next complete lines, up to 256 KiB of them, not beyond offset `until`.

        A longer line comes alone, in a look of its own.
        """
        start = self.offset + self._searched
        size = _READ_BYTES if until is None else min(_READ_BYTES, until - start)
        return answer(lambda: self._look(start, max(0, size)))

    def move_to_end(self, *, within: int | None = None) -> None:
        """Go behind the last complete line that is there, or that the first `within` bytes hold.

        Raises:
            OSError: the file cannot be read.
        """
        size = self._disk.read(self.path, offset=0, size=0).size
        self.offset = end_of_last_line(self._read, size if within is None else min(size, within))
        self._searched = 0

    def guard(self) -> int:
        """Return the guard of the line before the offset.

        Raises:
            OSError: the file cannot be read.
        """
        start = max(0, self.offset - GUARD_BYTES)
        return guard_of_end(self._read(start, self.offset - start))

    def attempt_before(self) -> int | None:
        """Return the attempt that wrote what stands before the offset, as its control lines say.

        Raises:
            OSError: the file cannot be read.
        """
        end = self.offset
        while end > 0:
            start = max(0, end - _LOOK_BACK_BYTES)
            for line in reversed(self._read(start, end - start).splitlines()):
                control = codec.decode_control(line) if codec.is_control(line) else None
                if isinstance(control, Open | Batch):
                    return control.attempt
            # A line that is cut in two here is seen whole by an overlapping look.
            end = start + _LINE_OVERLAP if start else 0
        return None

    def _read(self, offset: int, size: int) -> bytes:
        return self._disk.read(self.path, offset=offset, size=size).data

    def _look(self, start: int, size: int) -> Look:
        reading = self._reading(start, size)
        if not self._is_the_same(reading):
            return Look(outcome="replaced")
        if not self.identity:
            return Look(outcome="end", unfinished=reading.size)
        if reading.size < start:
            return Look(outcome="truncated", size=reading.size)
        end = reading.data.rfind(b"\n") + 1
        if self._searched or not end:
            return self._search(reading)
        return self._split(reading, end)

    def _is_the_same(self, reading: Reading) -> bool:
        """Compare the file with the one that was read before; learn its identity."""
        if not self.identity and self._inode in {None, reading.inode}:
            self._inode = reading.inode
            self.identity = _first_line(reading.head)
            return True
        identity = self.identity[:_HEAD_BYTES]
        return bool(identity) and reading.head[: len(identity)] == identity

    def _split(self, reading: Reading, end: int) -> Look:
        lines = tuple(reading.data[: end - 1].split(b"\n"))
        ends, offset = [], self.offset
        for line in lines:
            offset += len(line) + 1
            ends.append(offset)
        self.offset = offset
        outcome: Outcome = "lines" if offset < reading.size else "end"
        return Look(outcome=outcome, lines=lines, ends=tuple(ends))

    def _search(self, reading: Reading) -> Look:
        """Look for the end of a line that is unfinished or longer than one read; hold none of it.

        The offset stays before the line, and what was searched is not searched again.
        """
        found = reading.data.find(b"\n")
        if found < 0:
            if self._searched or len(reading.data) >= _READ_BYTES:
                self._searched += len(reading.data)
            more = len(reading.data) >= _READ_BYTES
            unfinished = 0 if more else max(0, reading.size - self.offset)
            return Look(outcome="lines" if more else "end", unfinished=unfinished)
        length = self._searched + found
        if length < LINE_LIMIT_BYTES:
            return self._whole(length)
        return self._skip(length + 1, "line too long")

    def _whole(self, length: int) -> Look:
        """Read a line whose length is known."""
        reading = self._reading(self.offset, length)
        if not self._is_the_same(reading):
            return Look(outcome="replaced")
        if len(reading.data) < length:
            return Look(outcome="failed", reason=SHORTER)
        self.offset += length + 1
        self._searched = 0
        return Look(outcome="lines", lines=(reading.data,), ends=(self.offset,))

    def _skip(self, length: int, reason: str) -> Look:
        """Pass over bytes."""
        end = self.offset + length
        reading = self._reading(max(0, end - GUARD_BYTES), min(end, GUARD_BYTES))
        if not self._is_the_same(reading):
            return Look(outcome="replaced")
        skipped = Skipped(self.offset, length, reason, guard_of_end(reading.data))
        self.offset, self._searched = end, 0
        return Look(outcome="lines", skipped=(skipped,))

    def _reading(self, offset: int, size: int) -> Reading:
        return self._disk.read(self.path, offset=offset, size=size, head=_HEAD_BYTES)


def answer(look: Callable[[], Look]) -> Look:
    """Return what a look found, or why the system let none happen."""
    try:
        return look()
    except (FileNotFoundError, NotADirectoryError):
        return Look(outcome="missing")
    except OSError as error:
        return Look(outcome="failed", reason=error.strerror or str(error))


def end_of_last_line(read: Callable[[int, int], bytes], size: int) -> int:
    """Return the offset behind the last newline of a file of `size` bytes; 0 if it has none.

    Args:
        read: returns up to `size` bytes from `offset`, called as ``read(offset, size)``.
        size: size of the file.
    """
    end = size
    while end > 0:
        start = max(0, end - _LOOK_BACK_BYTES)
        newline = read(start, end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _first_line(head: bytes) -> bytes:
    """Return the first line of a file, its newline included; empty while it is unfinished."""
    line, newline, _ = head.partition(b"\n")
    if newline:
        return line + newline
    return head if len(head) == _HEAD_BYTES else b""
