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

__all__ = ["LINE_LIMIT_BYTES", "Look", "Oversize", "Tail", "end_of_last_line"]

LINE_LIMIT_BYTES = 16 << 20
"""A line longer than this is skipped, in constant memory, and reported."""

_READ_BYTES = 256 << 10
_HEAD_BYTES = 4096
_LOOK_BACK_BYTES = 64 << 10
_LINE_OVERLAP = 1 << 10

Outcome: TypeAlias = Literal["lines", "end", "missing", "replaced", "truncated", "failed"]


class Oversize(msgspec.Struct, frozen=True):
    """A line that was skipped for its length: where it began and how long it was."""

    offset: int
    length: int


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at the file found.

    Attributes:
        outcome: `lines` were read and more may be there; `end`: whatever is complete was read;
            `missing`, `replaced` (another first line), `truncated` (shorter than what was read);
            `failed`: the system call failed, for `reason`.
        lines: the complete lines, without their newlines.
        ends: offset behind each line.
        oversize: lines that were skipped for their length.
        reason: why it failed.
    """

    outcome: Outcome
    lines: tuple[bytes, ...] = ()
    ends: tuple[int, ...] = ()
    oversize: tuple[Oversize, ...] = ()
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
        self._skipped = 0

    def look(self, *, until: int | None = None) -> Look:
        """Read the next complete lines, up to 256 KiB of them, not beyond offset `until`."""
        size = _READ_BYTES if until is None else min(_READ_BYTES, until - self.offset)
        try:
            return self._look(max(0, size))
        except (FileNotFoundError, NotADirectoryError):
            return Look(outcome="missing")
        except OSError as error:
            return Look(outcome="failed", reason=error.strerror or str(error))

    def move_to_end(self) -> None:
        """Go behind the last complete line that is there.

        Raises:
            OSError: the file cannot be read.
        """
        size = self._disk.read(self.path, offset=0, size=0).size
        self.offset = end_of_last_line(self._read, size)
        self._skipped = 0

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

    def _look(self, size: int) -> Look:
        start = self.offset + self._skipped
        reading = self._disk.read(self.path, offset=start, size=size, head=_HEAD_BYTES)
        if not self._is_the_same(reading):
            return Look(outcome="replaced")
        if not self.identity:
            return Look(outcome="end")
        if reading.size < start:
            return Look(outcome="truncated")
        if self._skipped:
            return self._skip(reading)
        return self._split(reading, size)

    def _is_the_same(self, reading: Reading) -> bool:
        """Compare the file with the one that was read before; learn its identity."""
        if not self.identity and self._inode in {None, reading.inode}:
            self._inode = reading.inode
            self.identity = _first_line(reading.head)
            return True
        identity = self.identity[:_HEAD_BYTES]
        return bool(identity) and reading.head[: len(identity)] == identity

    def _split(self, reading: Reading, size: int) -> Look:
        end = reading.data.rfind(b"\n") + 1
        if not end:
            return self._long_line(reading, size)
        lines = tuple(reading.data[: end - 1].split(b"\n"))
        ends, offset = [], self.offset
        for line in lines:
            offset += len(line) + 1
            ends.append(offset)
        self.offset = offset
        outcome: Outcome = "lines" if offset < reading.size else "end"
        return Look(outcome=outcome, lines=lines, ends=tuple(ends))

    def _long_line(self, reading: Reading, size: int) -> Look:
        """Deal with a look that saw no newline: the line is unfinished, long, or too long."""
        if len(reading.data) < size or not size:
            return Look(outcome="end")
        if size < LINE_LIMIT_BYTES:
            return self._look(min(size * 4, LINE_LIMIT_BYTES))
        return self._skip(reading)

    def _skip(self, reading: Reading) -> Look:
        """Pass over a line that is too long; the offset stays before it until its end is seen."""
        newline = reading.data.find(b"\n")
        if newline < 0:
            self._skipped += len(reading.data)
            more = self.offset + self._skipped < reading.size
            return Look(outcome="lines" if more else "end")
        skipped = Oversize(self.offset, self._skipped + newline + 1)
        self.offset, self._skipped = skipped.offset + skipped.length, 0
        return Look(outcome="lines", oversize=(skipped,))


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
