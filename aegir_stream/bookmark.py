"""The segment of a lane that is being read, and how far."""

from __future__ import annotations

import msgspec

from aegir_stream.committed import CommittedTail
from aegir_stream.cursor import Position, guard_of
from aegir_stream.events import Corrupt, Reset
from aegir_stream.layout import RunDirectory
from aegir_stream.lineage import Place
from aegir_stream.tail import Tail

__all__ = ["Bookmark"]


class Bookmark(msgspec.Struct):
    """The segment that is being read, and how far.

    Attributes:
        place: where it lies.
        tail: what reads the file.
        position: place behind everything that was read.
        attempt: number of the attempt whose records come next.
        rank: its rank.
        ended: whether nothing more is to be read of it.
        unfinished: bytes behind its last line.
        damaged_to: offset behind what was passed over last; -1 if nothing was.
        shortest: size of the file while it is shorter than what was read.
        short_looks: how often it was found so in a row.
    """

    place: Place
    tail: Tail
    position: Position
    attempt: int = 0
    rank: int = 0
    ended: bool = False
    unfinished: int = 0
    damaged_to: int = -1
    shortest: int | None = None
    short_looks: int = 0

    @property
    def number(self) -> int:
        """Number of the segment."""
        return self.place.segment

    def moved(self, place: Place) -> None:
        """Go on reading the same file in another place."""
        self.place, self.tail.path = place, place.path
        if isinstance(self.tail, CommittedTail):
            self.tail.growing = place.growing

    def is_as_it_was(self, run: RunDirectory) -> bool:
        """Tell whether what stands before the position is what was read there."""
        tail = Tail(run.disk, self.tail.path, offset=self.position.offset)
        return tail.guard() == self.position.guard

    def behind(self, line: bytes, end: int) -> None:
        """Move behind a line that ends at `end`."""
        self.position = Position(self.number, end, 0, guard_of(line))

    def behind_anything(self) -> None:
        """Move behind what the tail has passed over."""
        self.position = Position(self.number, self.tail.offset, 0, self.tail.guard())

    def corrupt(self, offset: int, length: int, reason: str) -> Corrupt:
        """Return the word that bytes of the file are no record."""
        return Corrupt(path=str(self.tail.path), offset=offset, length=length, reason=reason)

    def reset(self, reason: str) -> Reset:
        """Return the word that the file is not what it was."""
        return Reset(path=str(self.tail.path), reason=f"The file {reason}")
