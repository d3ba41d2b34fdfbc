"""Read one lane of a stream across its segments, from a position onwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from aegir_stream import codec
from aegir_stream.bookmark import Bookmark
from aegir_stream.chunk import Delivery, Gathering
from aegir_stream.committed import CommittedTail, Level, has_trailers
from aegir_stream.cursor import Position
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import (
    Checkpoint,
    Close,
    Closed,
    Corrupt,
    Gap,
    Note,
    Open,
    Rewound,
    Seal,
    SourceSwitch,
    Stalled,
)
from aegir_stream.layout import ABANDONED, STREAMS, UNSYNCED, RunDirectory
from aegir_stream.lineage import HEAD_BYTES, Lineage, Place, read_header, survey
from aegir_stream.patience import Unfinished
from aegir_stream.tail import SHORTER, Look, Tail

__all__ = ["LaneReader", "Placed"]

Placed: TypeAlias = tuple[Delivery, Position]
"""A delivery and the place behind it in its lane."""

_SHORT_LOOKS = 200
"""Looks until a closed file that is too short counts as truncated: longer than sizes are cached."""


class LaneReader:
    """Reads the segments of a lane in order and says what happens between their records.

    Args:
        run: the run directory.
        stream: name of the stream.
        lane: name of the lane.
        plan: numbers of the segments to read first; later ones follow in their order.
        at: where to start in the first segment of `plan`.
        whole: whether `plan` is all there is, so that what it lacks is told.
        level: when a record counts.
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
        level: Level = "live",
    ) -> None:
        self._run = run
        self._level: Level = level
        self._whole = whole
        self._stream = STREAMS[stream]
        self._lane = lane
        self._plan = deque(plan)
        self._at = at
        self._lineage: Lineage | None = None
        self._segment: Bookmark | None = None
        self._found: list[Placed] = []
        self._switch: SourceSwitch | None = None
        self.stalled = False

    @property
    def position(self) -> Position:
        """Place behind everything that was read."""
        if self._segment is None:
            return self._at or Position(self._plan[0] if self._plan else 1, 0)
        return self._segment.position

    @property
    def unfinished(self) -> Unfinished | None:
        """The last line, if its writer has not finished it yet."""
        segment = self._segment
        if segment is None or segment.ended or not segment.place.growing or not segment.unfinished:
            return None
        return Unfinished(str(segment.place.path), segment.tail.offset, segment.unfinished)

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
        # A reader that waits must not hold what it handed out.
        found, self._found = self._found, []
        return found

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

    def _read(self, segment: Bookmark, until: Position | None) -> bool:
        """Take one look at the segment; tell whether there may be more."""
        limit = until.offset if until and segment.number == until.segment else None
        look = segment.tail.look(until=limit)
        segment.unfinished = look.unfinished
        match look.outcome:
            case "failed":
                return self._stall(look.reason)
            case "missing" | "replaced":
                return self._relocate(segment, look.outcome)
            case "truncated":
                return self._wait_for_the_rest(segment, look.size)
        if segment.shortest is not None and not segment.is_as_it_was(self._run):
            return self._start_over(segment)
        segment.shortest, segment.short_looks = None, 0
        self.stalled = False
        self._digest(segment, look)
        done = look.outcome == "end" and not segment.place.growing and limit is None
        if done and not segment.ended:
            self._end_unsealed(segment)
        return segment.ended or look.outcome == "lines"

    def _end_unsealed(self, segment: Bookmark) -> None:
        """A closed file ends here; say so if a checkpoint closed it and its seal is not there."""
        segment.ended = True
        place, offset = segment.place, segment.position.offset
        # A cursor may stand behind the seal; and what lacks a checksum at the end was told.
        if place.sealed and segment.damaged_to < offset and self._lost_its_seal(place):
            reason = "the seal is missing: the file was cut off"
            self._say(segment.corrupt(offset, segment.unfinished, reason))

    def _lost_its_seal(self, place: Place) -> bool:
        """Tell whether a file that a checkpoint closed has no seal, and had one."""
        if self._run.seal_of(place.path):
            return False
        head = self._run.disk.read(place.path, offset=0, size=HEAD_BYTES).data
        line, newline, _ = head.partition(b"\n")
        if line.strip(b"\0"):
            return has_trailers(line + newline, self._stream.kind)
        # Nothing of it was written back: another segment tells.
        live = self._run.live(self._stream.name, self._lane)
        return read_header(self._run, live) is not None

    def _digest(self, segment: Bookmark, look: Look) -> None:
        batch = Gathering()
        for line, end in zip(look.lines, look.ends, strict=True):
            segment.behind(line, end)
            if codec.is_control(line):
                batch = self._hand_out(segment, batch)
                self._obey(segment, line)
            elif line:
                batch = self._gather(segment, line, batch)
        self._hand_out(segment, batch)
        for skipped in look.skipped:
            segment.position = Position(segment.number, skipped.end, 0, skipped.guard)
            segment.damaged_to = skipped.end
            self._say(segment.corrupt(skipped.offset, skipped.length, skipped.reason))

    def _gather(self, segment: Bookmark, line: bytes, batch: Gathering) -> Gathering:
        at = segment.position
        try:
            batch.add(line, codec.head(line, self._stream.kind), at)
        except MalformedEventError as error:
            batch = self._hand_out(segment, batch)
            self._say_corrupt(segment, line, str(error))
        return batch

    def _say_corrupt(self, segment: Bookmark, line: bytes, reason: str) -> None:
        """Tell that the line just read is none, together with those in a row before it."""
        start = segment.position.offset - len(line) - 1
        corrupt = segment.corrupt(start, len(line) + 1, reason)
        before = self._found[-1][0] if self._found else None
        if isinstance(before, Corrupt) and before.offset + before.length == start:
            self._found.pop()
            corrupt = msgspec.structs.replace(
                before, length=before.length + corrupt.length, lines=before.lines + 1
            )
        self._say(corrupt)

    def _hand_out(self, segment: Bookmark, batch: Gathering) -> Gathering:
        """Hand out what was gathered; return an empty batch."""
        if batch.records:
            chunk = batch.chunk(lane=self._lane, rank=segment.rank, attempt=segment.attempt)
            self._say(chunk, at=batch.places[-1])
        return Gathering()

    def _obey(self, segment: Bookmark, line: bytes) -> None:
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
                if status not in {ABANDONED, UNSYNCED}:
                    self._say(Closed(status=status))
                # Behind it a later attempt may have put the seal that its writer owed.
                segment.ended = self._stream.sealed and not segment.place.sealed
            case None if not codec.is_readable_control(line):
                self._say_corrupt(segment, line, "an unreadable control line")

    def _stall(self, reason: str) -> bool:
        if not self.stalled:
            path = self._segment.tail.path if self._segment else self._run.root
            self._say(Stalled(path=str(path), reason=reason))
        self.stalled = True
        return False

    # -- from segment to segment -------------------------------------------------------------------

    def _advance(self, until: Position | None) -> Bookmark | None:
        """Enter the next segment; `None` while there is none."""
        left = self._segment
        if self._plan:
            wanted = self._plan[0]
        elif left and not self._newer_than(left):
            return None
        else:
            wanted = left.number + 1 if left else 1
        lineage = self._lineage_for(wanted)
        number = min((n for n in lineage.places if n >= wanted), default=None)
        if number is None or (until and number > until.segment):
            return None
        while self._plan and self._plan[0] <= number:
            self._plan.popleft()
        self._segment = self._enter(lineage.places[number], left)
        return self._segment

    def _lineage_for(self, wanted: int) -> Lineage:
        """Return the lineage; as it was found before, if a closed segment is wanted: it stays.

        So a catch-up over many segments lists the directory once.
        """
        place = self._lineage.places.get(wanted) if self._lineage else None
        if self._lineage is None or not place or place.growing or not place.header(self._run):
            self._lineage = self._survey()
        return self._lineage

    def _newer_than(self, left: Bookmark) -> bool:
        """Tell, without listing directories, whether a segment after `left` may be there."""
        if not self._stream.sealed:
            return False
        header = read_header(self._run, self._run.live(self._stream.name, self._lane))
        return header is None or header.segment > left.number

    def _survey(self) -> Lineage:
        return survey(self._run, stream=self._stream.name, lane=self._lane)

    def _enter(self, place: Place, left: Bookmark | None) -> Bookmark:
        header = place.header(self._run)
        at = self._at if self._at and self._at.segment == place.segment else None
        segment = self._segment = self._begin(place, at)
        self._at = None
        segment.rank = header.rank if header else 0
        segment.attempt = header.attempt if header else 1
        if at and at.offset and not self._stream.sealed:
            segment.attempt = segment.tail.attempt_before() or segment.attempt
        if header and left:
            self._say_what_is_between(header, left, segment)
        if header and left is None and at is None and self._whole and header.previous:
            self._say(segment.reset(f"continues segment {header.previous}, which is gone"))
        if header is None and place.source.startswith("snapshot:"):
            checkpoint = place.source.removeprefix("snapshot:")
            self._say(Checkpoint(step=place.segment, checkpoint=checkpoint))
        self._say_switch(segment, continues=header.continues if header else None)
        return segment

    def _say_what_is_between(self, header: Open, left: Bookmark, segment: Bookmark) -> None:
        """Tell of a rewind, and of a segment that should have been read between two."""
        previous, places = header.previous, self._lineage.places if self._lineage else {}
        gone = previous is not None and previous > left.number and previous not in places
        if previous != left.number and (not gone or header.attempt > left.attempt):
            self._say(_rewound(header))
        if gone:
            self._say(segment.reset(f"continues segment {previous}, which is gone"))

    def _begin(self, place: Place, at: Position | None) -> Bookmark:
        """Return a segment, to be read from a position, or from its beginning."""
        offset = at.offset if at else 0
        if self._level == "live" or not self._stream.control_lines:
            tail = Tail(
                self._run.disk,
                place.path,
                offset=offset,
                identity=place.opening,
                inode=place.inode,
            )
        else:
            tail = CommittedTail(
                self._run.disk,
                place.path,
                kind=self._stream.kind,
                growing=place.growing,
                offset=offset,
                identity=place.opening,
                inode=place.inode,
            )
        return Bookmark(place, tail, at or Position(place.segment, 0))

    def _say_switch(self, segment: Bookmark, *, continues: str | None) -> None:
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

    def _relocate(self, segment: Bookmark, outcome: str) -> bool:
        """The file at our path is another one now: find where our segment went."""
        lineage = self._survey()
        place = lineage.places.get(segment.number)
        if place and place.path != segment.tail.path:
            segment.moved(place)
            return True
        if place and outcome == "missing":
            return self._stall("the file is missing")
        if place:
            self._segment = segment = self._begin(place, None)
            self._say(segment.reset("was replaced by another log; reading starts at its beginning"))
            return True
        if lineage.newest is not None and lineage.newest > segment.number:
            segment.ended = True
            self._say(segment.reset("is gone; reading goes on behind it"))
            return True
        return False

    def _wait_for_the_rest(self, segment: Bookmark, size: int) -> bool:
        """The file is shorter than what was read: truncated, or its size is out of date.

        Once it is as long again, the line before our place tells which. A file that grows no more
        is believed to be truncated after a while.
        """
        before = segment.position.offset if segment.shortest is None else segment.shortest
        segment.shortest = min(size, before)
        segment.short_looks += 1
        if not segment.place.growing and segment.short_looks > _SHORT_LOOKS:
            return self._start_over(segment)
        return self._stall(SHORTER)

    def _start_over(self, segment: Bookmark) -> bool:
        """Go on at the end of what a truncation left: what is there was delivered before."""
        segment.tail.move_to_end(within=segment.shortest)
        segment.behind_anything()
        segment.shortest, segment.short_looks = None, 0
        self._say(segment.reset("was truncated; reading goes on at the end of what was left"))
        return True


def _rewound(opening: Open) -> Rewound:
    return Rewound(
        attempt=opening.attempt, to_step=opening.continues_step, continues=opening.continues
    )
