"""Read one lane of a stream across its segments, from a position onwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.cursor import Cursor, Position, guard_of
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import (
    Checkpoint,
    Close,
    Closed,
    Corrupt,
    Gap,
    Note,
    Open,
    Reset,
    Rewound,
    Seal,
    SourceSwitch,
    Stalled,
)
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.lineage import Lineage, Place, read_header, survey
from aegir_stream.tail import Look, Tail

__all__ = ["LaneReader", "Placed"]

Placed: TypeAlias = tuple[Delivery, Position]
"""A delivery and the place behind it in its lane."""


class LaneReader:
    """Reads the segments of a lane in order and says what happens between their records.

    Args:
        run: the run directory.
        stream: name of the stream.
        lane: name of the lane.
        plan: numbers of the segments to read first; later ones follow in their order.
        at: where to start in the first segment of `plan`.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        stream: str,
        lane: str,
        plan: Iterable[int] = (),
        at: Position | None = None,
    ) -> None:
        self._run = run
        self._stream = STREAMS[stream]
        self._lane = lane
        self._plan = deque(plan)
        self._at = at
        self._tail: Tail | None = None
        self._place: Place | None = None
        self._found: list[Placed] = []
        self._guard = 0
        self._attempt = 0
        self._rank = 0
        self._switch: SourceSwitch | None = None
        self._ended = False
        self._stalled = False

    @property
    def position(self) -> Position:
        """Place behind everything that was read."""
        if self._tail is None or self._place is None:
            return self._at or Position(self._plan[0] if self._plan else 1, 0)
        return Position(self._place.segment, self._tail.offset, 0, self._guard)

    def poll(self, *, until: Position | None = None) -> list[Placed]:
        """Return what can be read now, up to about 256 KiB, each with the place behind it.

        Nothing if nothing new is there. Chunks carry no composite cursor yet: the source fills it
        in.
        """
        self._found = []
        while not self._found:
            if (self._tail is None or self._ended) and not self._advance(until):
                break
            if not self._read(until):
                break
        return self._found

    def _say(self, delivery: Delivery, *, end: int | None = None, line: bytes = b"") -> None:
        """Hand out a delivery that stands behind `line`, or behind everything that was read."""
        at = self.position
        if end is not None:
            at = Position(at.segment, end, 0, guard_of(line))
        self._found.append((delivery, at))

    # -- inside a segment --------------------------------------------------------------------------

    def _read(self, until: Position | None) -> bool:
        """Take one look at the current segment; tell whether there may be more."""
        if self._tail is None or self._place is None:
            return False
        limit = until.offset if until and self._place.segment == until.segment else None
        look = self._tail.look(until=limit)
        match look.outcome:
            case "failed":
                return self._stall(look.reason)
            case "missing" | "replaced":
                return self._relocate()
            case "truncated":
                return self._start_over()
        self._stalled = False
        self._digest(look)
        done = look.outcome == "end" and not self._place.growing and limit is None
        self._ended = self._ended or done
        return self._ended or look.outcome == "lines"

    def _digest(self, look: Look) -> None:
        for skipped in look.oversize:
            self._say(self._corrupt(skipped.offset, skipped.length, "line too long"))
        batch = _Batch()
        for line, end in zip(look.lines, look.ends, strict=True):
            if codec.is_control(line):
                batch = self._hand_out(batch)
                self._obey(line, end)
            elif line:
                batch = self._gather(line, end, batch)
        self._hand_out(batch)
        if look.lines:
            self._guard = guard_of(look.lines[-1])

    def _gather(self, line: bytes, end: int, batch: _Batch) -> _Batch:
        try:
            batch.add(line, codec.head(line, self._stream.kind), end)
        except MalformedEventError as error:
            batch = self._hand_out(batch)
            corrupt = self._corrupt(end - len(line) - 1, len(line) + 1, str(error))
            self._say(corrupt, end=end, line=line)
        return batch

    def _hand_out(self, batch: _Batch) -> _Batch:
        """Hand out what was gathered; return an empty batch."""
        if batch.records and self._place:
            chunk = Chunk(
                lane=self._lane,
                rank=self._rank,
                attempt=self._attempt,
                segment=self._place.segment,
                records=tuple(batch.records),
                heads=tuple(batch.heads),
                ends=tuple(batch.ends),
                before=Cursor("0", {}),
            )
            self._say(chunk, end=batch.ends[-1], line=batch.records[-1])
        return _Batch()

    def _obey(self, line: bytes, end: int) -> None:
        """Act on a control line."""
        match codec.decode_control(line):
            case Open() as opening:
                if self._attempt and opening.attempt > self._attempt:
                    self._say(_rewound(opening), end=end, line=line)
                self._attempt, self._rank = opening.attempt, opening.rank
            case Gap() | Note() as event:
                self._say(event, end=end, line=line)
            case Seal(checkpoint=checkpoint, step=step):
                self._say(Checkpoint(step=step, checkpoint=checkpoint), end=end, line=line)
                self._ended = True
            case Close(status=status):
                if status != "abandoned":
                    self._say(Closed(status=status), end=end, line=line)
                self._ended = self._stream.sealed

    def _stall(self, reason: str) -> bool:
        if not self._stalled and self._tail:
            self._say(Stalled(path=str(self._tail.path), reason=reason))
        self._stalled = True
        return False

    # -- from segment to segment -------------------------------------------------------------------

    def _advance(self, until: Position | None) -> bool:
        """Enter the next segment; `False` while there is none."""
        if self._plan:
            wanted = self._plan[0]
        elif self._place and not self._newer_than(self._place):
            return False
        else:
            wanted = self._place.segment + 1 if self._place else 1
        lineage = self._survey()
        number = min((n for n in lineage.places if n >= wanted), default=None)
        if number is None or (until and number > until.segment):
            return False
        if self._plan:
            self._plan.popleft()
        self._enter(lineage.places[number])
        return True

    def _newer_than(self, place: Place) -> bool:
        """Tell, without listing directories, whether a segment after `place` may be there."""
        if not self._stream.sealed:
            return False
        header = read_header(self._run, self._run.live(self._stream.name, self._lane))
        return header is None or header.segment > place.segment

    def _survey(self) -> Lineage:
        return survey(self._run, stream=self._stream.name, lane=self._lane)

    def _enter(self, place: Place) -> None:
        header = read_header(self._run, place.path)
        left = self._place.segment if self._place else None
        at = self._at if self._at and self._at.segment == place.segment else None
        self._tail = Tail(self._run.disk, place.path, offset=at.offset if at else 0)
        self._guard = at.guard if at else 0
        self._place, self._at, self._ended = place, None, False
        self._attempt = header.attempt if header else self._attempt or 1
        self._rank = header.rank if header else self._rank
        if header and left is not None and header.previous != left:
            self._say(_rewound(header))
        if header is None and place.source.startswith("snapshot:"):
            checkpoint = place.source.removeprefix("snapshot:")
            self._say(Checkpoint(step=place.segment, checkpoint=checkpoint))
        switch = SourceSwitch(
            source=place.source,
            path=str(place.path),
            attempt=self._attempt,
            continues=header.continues if header else None,
        )
        # The live path stays the source when a checkpoint puts a fresh segment there.
        if switch != self._switch:
            self._say(switch)
        self._switch = switch

    def _relocate(self) -> bool:
        """The file at our path is another one now: find where our segment went."""
        if self._tail is None or self._place is None:
            return False
        lineage = self._survey()
        place = lineage.places.get(self._place.segment)
        if place and place.path != self._tail.path:
            self._place, self._tail.path = place, place.path
            return True
        if place:
            self._tail, self._guard = Tail(self._run.disk, place.path), 0
            self._say(self._reset("was replaced by another log; reading starts at its beginning"))
            return True
        if lineage.newest is not None and lineage.newest > self._place.segment:
            self._ended = True
            self._say(self._reset("is gone; reading goes on behind it"))
            return True
        return False

    def _start_over(self) -> bool:
        """Go on at the end of what a truncation left: what is there was delivered before."""
        if self._tail:
            self._tail.move_to_end()
            self._guard = self._tail.guard()
        self._say(self._reset("was truncated; reading goes on at its end"))
        return True

    # -- what is said ------------------------------------------------------------------------------

    def _corrupt(self, offset: int, length: int, reason: str) -> Corrupt:
        path = str(self._tail.path) if self._tail else ""
        return Corrupt(path=path, offset=offset, length=length, reason=reason)

    def _reset(self, reason: str) -> Reset:
        path = str(self._tail.path) if self._tail else ""
        return Reset(path=path, reason=f"The file {reason}")


class _Batch(msgspec.Struct):
    """Records gathered between two control lines."""

    records: list[bytes] = []
    heads: list[codec.RecordHead] = []
    ends: list[int] = []

    def add(self, line: bytes, head: codec.RecordHead, end: int) -> None:
        self.records.append(line)
        self.heads.append(head)
        self.ends.append(end)


def _rewound(opening: Open) -> Rewound:
    return Rewound(
        attempt=opening.attempt, to_step=opening.continues_step, continues=opening.continues
    )
