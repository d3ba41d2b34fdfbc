"""What a source hands out: chunks of records, and what happens between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from aegir_stream.codec import RecordHead
from aegir_stream.cursor import Cursor, Position, guard_of
from aegir_stream.events import (
    CaughtUp,
    Checkpoint,
    Closed,
    Corrupt,
    FellBehind,
    Gap,
    Heartbeat,
    Idle,
    Note,
    Reset,
    Rewound,
    SourceSwitch,
    Stalled,
)

__all__ = ["Chunk", "Delivery", "Gathering"]


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Data records of one lane, in order, as they stand in the log.

    Attributes:
        lane: lane that wrote them.
        rank: its process index.
        attempt: attempt that wrote them.
        segment: segment they stand in.
        records: JSON objects, without newlines.
        heads: the routing scalars of each.
        ends: offset in the segment behind each.
        before: cursor before the first record, over all lanes.
    """

    lane: str
    rank: int
    attempt: int
    segment: int
    records: tuple[bytes, ...]
    heads: tuple[RecordHead, ...]
    ends: tuple[int, ...]
    before: Cursor

    @property
    def after(self) -> Cursor:
        """Cursor behind the last record."""
        return self.before.moved(self.lane, self._position(-1))

    def cursors(self) -> Iterator[str]:
        """Yield the text of the cursor behind each record."""
        # Only this lane's position differs from record to record: spell the others once.
        mark = f"~{self.lane}:{_MARK.text()}"
        head, _, foot = self.before.moved(self.lane, _MARK).text().partition(mark)
        for index in range(len(self.records)):
            yield f"{head}~{self.lane}:{self._position(index).text()}{foot}"

    def _position(self, index: int) -> Position:
        guard = guard_of(self.records[index])
        return Position(self.segment, self.ends[index], 0, guard)


class Gathering(msgspec.Struct):
    """Records of one segment on their way into a chunk."""

    records: list[bytes] = []
    heads: list[RecordHead] = []
    places: list[Position] = []

    def add(self, record: bytes, head: RecordHead, at: Position) -> None:
        """Take a record that stands before `at`."""
        self.records.append(record)
        self.heads.append(head)
        self.places.append(at)

    def chunk(self, *, lane: str, rank: int, attempt: int) -> Chunk:
        """Return the chunk; the cursor before it is filled in by who knows the other lanes."""
        return Chunk(
            lane=lane,
            rank=rank,
            attempt=attempt,
            segment=self.places[-1].segment,
            records=tuple(self.records),
            heads=tuple(self.heads),
            ends=tuple(at.offset for at in self.places),
            before=Cursor("0", {}),
        )


_MARK = Position(0, 0)
"""No segment has the number 0."""

Delivery: TypeAlias = (
    Chunk
    | SourceSwitch
    | Checkpoint
    | Idle
    | Heartbeat
    | Gap
    | Note
    | Corrupt
    | Reset
    | Rewound
    | Stalled
    | CaughtUp
    | FellBehind
    | Closed
)
"""What a source hands out."""
