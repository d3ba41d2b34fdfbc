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
        whole: whether `plan` is all there is, so that what it lacks is told.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        stream: str,
        lane: str,
        plan: Iterable[int] = (),
        at: Position | None = None,
        whole: bool = False,
    ) -> None:
        self._run = run
        self._whole = whole
        self._stream = STREAMS[stream]
        self._lane = lane
        self._plan = deque(plan)
        self._at = at
        self._segment: _Segment | None = None
        self._found: list[Placed] = []
        self._switch: SourceSwitch | None = None
        self.stalled = False

    @property
    def position(self) -> Position:
        """Place behind everything that was read."""
        if self._segment is None:
            return self._at or Position(self._plan[0] if self._plan else 1, 0)
        return self._segment.position

    def poll(self, *, until: Position | None = None) -> list[Placed]:
        """Return what can be read now, up to about 256 KiB, each with the place behind it.

        Nothing if nothing new is there. Chunks carry no composite cursor yet: the source fills it
        in. What fails for now is told once, by `Stalled`, and `stalled` until it works again.
        """
        self._found = []
        try:
            while not self._found and self._proceed(until):
                pass
        except OSError as error:
            self._stall(error.strerror or str(error))
        return self._found

    def _proceed(self, until: Position | None) -> bool:
        """Read on in the segment, or go on to the next; tell whether there may be more."""
        segment = self._segment
        if segment is None or segment.ended:
            segment = self._advance(until)
        return segment is not None and self._read(segment, until)

    def _say(self, delivery: Delivery, *, at: Position | None = None) -> None:
        """Hand out a delivery that stands before `at`, or behind everything that was read."""
        self._found.append((delivery, at or self.position))

    # -- inside a segment --------------------------------------------------------------------------

    def _read(self, segment: _Segment, until: Position | None) -> bool:
        """Take one look at the segment; tell whether there may be more."""
        limit = until.offset if until and segment.number == until.segment else None
        look = segment.tail.look(until=limit)
        match look.outcome:
            case "failed":
                return self._stall(look.reason)
            case "missing" | "replaced":
                return self._relocate(segment, look.outcome)
            case "truncated":
                return self._start_over(segment)
        self.stalled = False
        self._digest(segment, look)
        done = look.outcome == "end" and not segment.place.growing and limit is None
        segment.ended = segment.ended or done
        return segment.ended or look.outcome == "lines"

    def _digest(self, segment: _Segment, look: Look) -> None:
        batch = _Batch()
        for line, end in zip(look.lines, look.ends, strict=True):
            segment.behind(line, end)
            if codec.is_control(line):
                batch = self._hand_out(segment, batch)
                self._obey(segment, line)
            elif line:
                batch = self._gather(segment, line, batch)
        self._hand_out(segment, batch)
        for skipped in look.oversize:
            segment.behind_anything()
            self._say(segment.corrupt(skipped.offset, skipped.length, "line too long"))

    def _gather(self, segment: _Segment, line: bytes, batch: _Batch) -> _Batch:
        at = segment.position
        try:
            batch.add(line, codec.head(line, self._stream.kind), at)
        except MalformedEventError as error:
            batch = self._hand_out(segment, batch)
            start = at.offset - len(line) - 1
            self._say(segment.corrupt(start, len(line) + 1, str(error)), at=at)
        return batch

    def _hand_out(self, segment: _Segment, batch: _Batch) -> _Batch:
        """Hand out what was gathered; return an empty batch."""
        if batch.records:
            chunk = Chunk(
                lane=self._lane,
                rank=segment.rank,
                attempt=segment.attempt,
                segment=segment.number,
                records=tuple(batch.records),
                heads=tuple(batch.heads),
                ends=tuple(at.offset for at in batch.places),
                before=Cursor("0", {}),
            )
            self._say(chunk, at=batch.places[-1])
        return _Batch()

    def _obey(self, segment: _Segment, line: bytes) -> None:
        """Act on a control line."""
        match codec.decode_control(line):
            case Open() as opening:
                if opening.attempt > segment.attempt > 0:
                    self._say(_rewound(opening))
                segment.attempt, segment.rank = opening.attempt, opening.rank
            case Gap() | Note() as event:
                self._say(event)
            case Seal(checkpoint=checkpoint, step=step):
                self._say(Checkpoint(step=step, checkpoint=checkpoint))
                segment.ended = True
            case Close(status=status):
                if status != "abandoned":
                    self._say(Closed(status=status))
                segment.ended = self._stream.sealed

    def _stall(self, reason: str) -> bool:
        if not self.stalled:
            path = self._segment.tail.path if self._segment else self._run.root
            self._say(Stalled(path=str(path), reason=reason))
        self.stalled = True
        return False

    # -- from segment to segment -------------------------------------------------------------------

    def _advance(self, until: Position | None) -> _Segment | None:
        """Enter the next segment; `None` while there is none."""
        left = self._segment
        if self._plan:
            wanted = self._plan[0]
        elif left and not self._newer_than(left):
            return None
        else:
            wanted = left.number + 1 if left else 1
        lineage = self._survey()
        number = min((n for n in lineage.places if n >= wanted), default=None)
        if number is None or (until and number > until.segment):
            return None
        while self._plan and self._plan[0] <= number:
            self._plan.popleft()
        self._segment = self._enter(lineage.places[number], left)
        return self._segment

    def _newer_than(self, left: _Segment) -> bool:
        """Tell, without listing directories, whether a segment after `left` may be there."""
        if not self._stream.sealed:
            return False
        header = read_header(self._run, self._run.live(self._stream.name, self._lane))
        return header is None or header.segment > left.number

    def _survey(self) -> Lineage:
        return survey(self._run, stream=self._stream.name, lane=self._lane)

    def _enter(self, place: Place, left: _Segment | None) -> _Segment:
        header = place.header(self._run)
        at = self._at if self._at and self._at.segment == place.segment else None
        segment = self._segment = _Segment.at(self._run, place, at)
        self._at = None
        segment.rank = header.rank if header else 0
        segment.attempt = header.attempt if header else 1
        if at and at.offset and not self._stream.sealed:
            segment.attempt = segment.tail.attempt_before() or segment.attempt
        if header and left and header.previous != left.number:
            self._say(_rewound(header))
        if header and left is None and at is None and self._whole and header.previous:
            self._say(segment.reset(f"continues segment {header.previous}, which is gone"))
        if header is None and place.source.startswith("snapshot:"):
            checkpoint = place.source.removeprefix("snapshot:")
            self._say(Checkpoint(step=place.segment, checkpoint=checkpoint))
        self._say_switch(segment, continues=header.continues if header else None)
        return segment

    def _say_switch(self, segment: _Segment, *, continues: str | None) -> None:
        switch = SourceSwitch(
            source=segment.place.source,
            path=str(segment.place.path),
            attempt=segment.attempt,
            continues=continues,
        )
        # The live path stays the source when a checkpoint puts a fresh segment there.
        if switch != self._switch:
            self._say(switch)
        self._switch = switch

    def _relocate(self, segment: _Segment, outcome: str) -> bool:
        """The file at our path is another one now: find where our segment went."""
        lineage = self._survey()
        place = lineage.places.get(segment.number)
        if place and place.path != segment.tail.path:
            segment.place, segment.tail.path = place, place.path
            return True
        if place and outcome == "missing":
            return self._stall("the file is missing")
        if place:
            self._segment = segment = _Segment.at(self._run, place, None)
            self._say(segment.reset("was replaced by another log; reading starts at its beginning"))
            return True
        if lineage.newest is not None and lineage.newest > segment.number:
            segment.ended = True
            self._say(segment.reset("is gone; reading goes on behind it"))
            return True
        return False

    def _start_over(self, segment: _Segment) -> bool:
        """Go on at the end of what a truncation left: what is there was delivered before."""
        segment.tail.move_to_end()
        segment.behind_anything()
        self._say(segment.reset("was truncated; reading goes on at its end"))
        return True


class _Segment(msgspec.Struct):
    """The segment that is being read, and how far."""

    place: Place
    tail: Tail
    position: Position
    attempt: int = 0
    rank: int = 0
    ended: bool = False

    @classmethod
    def at(cls, run: RunDirectory, place: Place, at: Position | None) -> _Segment:
        tail = Tail(
            run.disk,
            place.path,
            offset=at.offset if at else 0,
            identity=place.opening,
            inode=place.inode,
        )
        return cls(place, tail, at or Position(place.segment, 0))

    @property
    def number(self) -> int:
        return self.place.segment

    def behind(self, line: bytes, end: int) -> None:
        """Move behind a line that ends at `end`."""
        self.position = Position(self.number, end, 0, guard_of(line))

    def behind_anything(self) -> None:
        """Move behind what the tail has passed over."""
        self.position = Position(self.number, self.tail.offset, 0, self.tail.guard())

    def corrupt(self, offset: int, length: int, reason: str) -> Corrupt:
        return Corrupt(path=str(self.tail.path), offset=offset, length=length, reason=reason)

    def reset(self, reason: str) -> Reset:
        return Reset(path=str(self.tail.path), reason=f"The file {reason}")


class _Batch(msgspec.Struct):
    """Records gathered between two control lines."""

    records: list[bytes] = []
    heads: list[codec.RecordHead] = []
    places: list[Position] = []

    def add(self, line: bytes, head: codec.RecordHead, at: Position) -> None:
        self.records.append(line)
        self.heads.append(head)
        self.places.append(at)


def _rewound(opening: Open) -> Rewound:
    return Rewound(
        attempt=opening.attempt, to_step=opening.continues_step, continues=opening.continues
    )
