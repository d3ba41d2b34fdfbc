"""Opaque places in a stream, to resume from exactly.

A cursor names, for every lane, a segment and a byte offset behind a line, and carries a short hash
of the bytes before it, so that a forged or foreign cursor is noticed. Its text is what server-sent
events carry as `id`; nothing outside this module looks into it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import msgspec

from aegir_stream.errors import CursorError

__all__ = ["GUARD_BYTES", "Cursor", "Position", "guard_of", "guard_of_end"]

GUARD_BYTES = 64
"""How many bytes before an offset its guard covers, at most: the end of the line before it."""

_TEXT = re.compile(r"([0-9a-f]+)((?:~rank\d+(?:-\d+)?:\d+:\d+:\d+:[0-9a-f]{8})*)")


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in one lane.

    Attributes:
        segment: number of the segment.
        offset: bytes of it that were read, whole lines.
        row: records read of the line behind `offset`, where a line holds several.
        guard: `guard_of` the line before `offset`; 0 at the start of a segment.
    """

    segment: int
    offset: int
    row: int = 0
    guard: int = 0

    def text(self) -> str:
        """Return the position as it stands in a cursor."""
        return f"{self.segment}:{self.offset}:{self.row}:{self.guard:08x}"


class Cursor(msgspec.Struct, frozen=True):
    """A place in a stream: one position in each lane that was read.

    Attributes:
        log: identity of the log; another log's cursor is foreign.
        lanes: position by lane.
    """

    log: str
    lanes: Mapping[str, Position]

    def text(self) -> str:
        """Return the cursor as an opaque token without spaces or line breaks."""
        return self.log + "".join(f"~{lane}:{at.text()}" for lane, at in self.lanes.items())

    def moved(self, lane: str, at: Position) -> Cursor:
        """Return this cursor with one lane at another place."""
        return Cursor(self.log, dict(sorted({**self.lanes, lane: at}.items())))

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor that `text` spells.

        Raises:
            CursorError: it is no cursor (verdict `malformed`).
        """
        match = _TEXT.fullmatch(text)
        if not match:
            raise CursorError(
                f"Expected a cursor of this log, got `{text[:80]}`",
                verdict="malformed",
                hint="Pass the id of an earlier event, unchanged",
            )
        entries = (entry.split(":") for entry in match[2].split("~")[1:])
        return cls(match[1], {lane: _position(*numbers) for lane, *numbers in entries})


def guard_of(line: bytes) -> int:
    """Return the hash of the end of a line, which is given without its newline."""
    return zlib.crc32(line[1 - GUARD_BYTES :] + b"\n")


def guard_of_end(data: bytes) -> int:
    """Return the hash of the last line of `data`, the bytes before an offset; 0 of nothing.

    The last `GUARD_BYTES` bytes before the offset are enough.
    """
    return guard_of(data[:-1].rpartition(b"\n")[2]) if data else 0


def _position(segment: str, offset: str, row: str, guard: str) -> Position:
    return Position(int(segment), int(offset), int(row), int(guard, 16))
