"""A stream of a run, read across segments and lanes: live over snapshot, resumable anywhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal, TypeAlias

import anyio.to_thread
import msgspec

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.clock import SystemClock
from aegir_stream.committed import Level
from aegir_stream.cursor import Cursor, Position
from aegir_stream.errors import CursorError, OptionError
from aegir_stream.events import CaughtUp, Idle, SourceSwitch, Stalled
from aegir_stream.lane import LaneReader
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.lineage import Lineage, Place, survey
from aegir_stream.pacing import Pacer
from aegir_stream.patience import Patience
from aegir_stream.tail import Tail
from aegir_stream.typing import Clock

__all__ = ["Attempts", "Level", "RunSource", "Start"]

Start: TypeAlias = Literal["checkpoint", "start", "now"]
"""Where reading begins without a cursor: behind the last checkpoint, at the first record,
or behind everything that is there."""

_DISCOVER_EVERY = 50
"""Polls without a pause after which new lanes are looked for all the same."""

Attempts: TypeAlias = Literal["surviving", "all"]
"""Which segments `start` reads: those that the newest one continues, or every one."""


class RunSource:
    """Reads one stream of a run. One task or thread at a time uses it.

    Order: that of each lane; lanes are interleaved as they are found. Loss and duplicates: none;
    what is gone is told by `Reset`, `Gap` or `Corrupt`. No file stays open between calls.

    Args:
        run: the run directory; it need not exist yet.
        stream: name of the stream.
        after: text of a cursor to resume from; wins over `start`.
        start: where to begin otherwise.
        attempts: which segments `start="start"` reads.
        level: when a record counts. `live`: its newline is there. `committed`: the trailer behind
            its append is there and agrees with it; appends that do not are told by `Corrupt`. Files
            without control lines have no trailers and are read as at `live`.
        clock: what `follow` sleeps on and measures with.
        poll_s: shortest and longest wait of `follow` between two looks.
        notify: whether `follow` may use file notification.
        stall_s: how long the last line of a growing file may stay unfinished before `follow` tells
            it by `Stalled`, once until it grows again. A stream that was closed says `Closed`.

    Raises:
        OptionError: there is no such stream.
    """

    def __init__(
        self,
        run: RunDirectory,
        stream: str = "sae_features",
        *,
        after: str | None = None,
        start: Start = "checkpoint",
        attempts: Attempts = "surviving",
        level: Level = "live",
        clock: Clock | None = None,
        poll_s: tuple[float, float] = (0.005, 0.25),
        notify: bool = True,
        stall_s: float = 30.0,
    ) -> None:
        if stream not in STREAMS:
            raise OptionError(
                f"Expected one of the streams {', '.join(STREAMS)}, got `{stream}`",
                hint="See docs/reference/file-format.md for what each holds",
            )
        self._run = run
        self._stream = stream
        self._after = after
        self._start: Start = start
        self._attempts: Attempts = attempts
        self._level: Level = level
        self._clock = clock or SystemClock()
        self._poll_s = poll_s
        self._notify = notify
        self._patience = Patience(self._clock, stall_s=stall_s)
        self._lanes: dict[str, LaneReader] = {}
        self._log = ""
        self._verdict: str | None = None
        self._resume: Cursor | None = None
        self._told: type[Idle | CaughtUp | Stalled] | None = None
        self._begun = False
        self._busy_polls = 0

    @property
    def judged(self) -> bool:
        """Whether it is known what becomes of the cursor that the reader came with."""
        return self._after is None or bool(self._log)

    @property
    def stalled(self) -> bool:
        """Whether reading fails for now."""
        return self._told is Stalled or any(reader.stalled for reader in self._lanes.values())

    @property
    def cursor(self) -> Cursor:
        """Place behind everything that was handed out."""
        lanes = {lane: reader.position for lane, reader in sorted(self._lanes.items())}
        return Cursor(self._log or "0", lanes)

    def poll(self, *, until: Cursor | None = None) -> list[Delivery]:
        """Return what can be read now, in pieces of about 256 KiB per lane; never waits for news.

        The first call begins with a `SourceSwitch`, which carries the verdict on the cursor, or
        with `Idle`. `CaughtUp` comes once when nothing is left, then the list is empty until there
        is news. With `until` nothing beyond that cursor is read.
        """
        return [delivery for delivery, _ in self.poll_placed(until=until)]

    def poll_placed(self, *, until: Cursor | None = None) -> list[tuple[Delivery, Cursor]]:
        """Return what `poll` returns, each delivery with the cursor behind it."""
        try:
            return self._look(until)
        except OSError as error:
            # A directory that cannot be listed now, on a mount that may come back.
            reason = error.strerror or str(error)
            told = self._tell(Stalled(path=str(error.filename or self._run.root), reason=reason))
            return [(stalled, self.cursor) for stalled in told]

    def _look(self, until: Cursor | None) -> list[tuple[Delivery, Cursor]]:
        self._discover()
        found: list[tuple[Delivery, Cursor]] = []
        for lane, reader in self._lanes.items():
            limit = until.lanes.get(lane) if until else None
            if until and limit is None:
                continue
            cursor = self.cursor
            for delivery, at in reader.poll(until=limit):
                before, cursor = cursor, cursor.moved(lane, at)
                found.append((self._completed(delivery, before), cursor))
        if found:
            self._told = None
            return found
        if any(reader.stalled for reader in self._lanes.values()):
            return []
        told = CaughtUp() if self._lanes else Idle(reason=self._why_idle())
        return [(quiet, self.cursor) for quiet in self._tell(told)]

    async def follow(self) -> AsyncGenerator[Delivery, None]:
        """Yield what `poll` finds, for as long as the caller iterates.

        Reading happens in a worker thread, so a slow disk does not block the loop. Close the
        iterator (`contextlib.aclosing`) to release the file notification.
        """
        async with aclosing(self.follow_placed()) as placed:
            async for delivery, _ in placed:
                yield delivery

    async def follow_placed(self) -> AsyncGenerator[tuple[Delivery, Cursor], None]:
        """Yield what `follow` yields, each delivery with the cursor behind it."""
        fastest_s, slowest_s = self._poll_s
        pacer = Pacer(self._clock, fastest_s=fastest_s, slowest_s=slowest_s, notify=self._notify)
        try:
            while True:
                placed = await anyio.to_thread.run_sync(self.poll_placed, abandon_on_cancel=True)
                for one in placed:
                    yield one
                for stalled in self._overdue():
                    yield stalled, self.cursor
                if placed:
                    pacer.news()
                else:
                    await pacer.pause(self._run.root)
        finally:
            pacer.close()

    def _overdue(self) -> list[Stalled]:
        """Return the lanes whose last line has been unfinished for too long."""
        unfinished = (reader.unfinished for reader in self._lanes.values())
        return list(self._patience.spent(line for line in unfinished if line))

    # -- lanes -------------------------------------------------------------------------------------

    def _discover(self) -> None:
        """Look for lanes when nothing is left to read, and now and then while there is."""
        self._busy_polls += 1
        if self._lanes and self._told is None and self._busy_polls < _DISCOVER_EVERY:
            return
        self._busy_polls = 0
        for lane in self._run.lanes(self._stream):
            if lane not in self._lanes:
                self._add(lane)
        self._begun = True

    def _add(self, lane: str) -> None:
        lineage = self._survey(lane)
        log = self._identify(lineage)
        if lineage.newest is None or log is None:
            return
        if not self._log:
            self._judge(log)
            self._log = log
        plan, at = self._entry(lane, lineage)
        self._lanes[lane] = LaneReader(
            self._run,
            stream=self._stream,
            lane=lane,
            plan=plan,
            at=at,
            whole=self._start == "start" and self._attempts == "surviving",
            level=self._level,
        )

    def _entry(self, lane: str, lineage: Lineage) -> tuple[list[int], Position | None]:
        """Return the segments to read first, and where to start in the first of them."""
        newest = lineage.newest
        if newest is None:
            return [], None
        if self._resume and (at := self._resume.lanes.get(lane)):
            return self._behind(at, lineage), at
        if self._start == "start" or self._resume or self._begun:
            # A lane that appears later is new from its first record.
            whole = self._attempts == "all"
            return lineage.all() if whole else lineage.surviving(self._run), None
        if self._start == "checkpoint":
            return lineage.since_checkpoint(self._run), None
        at = self._end_of(lineage.places[newest])
        return ([newest], at) if at else self._entry(lane, self._survey(lane))

    def _end_of(self, place: Place) -> Position | None:
        """Return the place behind everything in a segment; `None` if it was sealed meanwhile."""
        tail = Tail(self._run.disk, place.path)
        tail.move_to_end()
        at = Position(place.segment, tail.offset, 0, tail.guard())
        return at if self._still(place) else None

    def _still(self, place: Place) -> bool:
        """Tell whether a segment is still where it was seen."""
        if not place.growing:
            return True
        try:
            now = self._run.disk.read(place.path, offset=0, size=len(place.opening))
        except FileNotFoundError:
            return False
        return (now.data, now.inode) == (place.opening, place.inode)

    def _behind(self, at: Position, lineage: Lineage) -> list[int]:
        surviving = lineage.surviving(self._run)
        chain = surviving if at.segment in surviving else lineage.all()
        return [number for number in chain if number >= at.segment]

    def _survey(self, lane: str) -> Lineage:
        return survey(self._run, stream=self._stream, lane=lane)

    def _identify(self, lineage: Lineage) -> str | None:
        """Return the log's identity, `0` for one without headers, `None` while nothing tells."""
        for number in reversed(lineage.all()):
            place = lineage.places[number]
            if header := place.header(self._run):
                return header.log
            if place.opening or not place.growing:
                return "0"
        return None

    # -- the cursor that the reader came with ------------------------------------------------------

    def _judge(self, log: str) -> None:
        """Decide whether the cursor can be resumed; the verdict goes out with the first source."""
        if self._after is None:
            return
        try:
            cursor = Cursor.parse(self._after)
            self._check(cursor, log)
        except CursorError as error:
            self._verdict = f"{error.verdict}: {error}"
        else:
            self._verdict, self._resume = "resumed", cursor

    def _check(self, cursor: Cursor, log: str) -> None:
        if cursor.log != log:
            raise CursorError(
                f"The cursor is of log {cursor.log}, this is log {log}",
                verdict="foreign",
                hint=self._fallback(),
            )
        for lane, at in cursor.lanes.items():
            if at.offset and self._guard_at(lane, at) != at.guard:
                raise CursorError(
                    f"Segment {at.segment} holds something else at offset {at.offset}",
                    verdict="foreign",
                    hint=self._fallback(),
                )

    def _guard_at(self, lane: str, at: Position) -> int:
        while place := self._survey(lane).places.get(at.segment):
            guard = Tail(self._run.disk, place.path, offset=at.offset).guard()
            if self._still(place):
                return guard
        raise CursorError(
            f"Segment {at.segment} is no longer there",
            verdict="expired",
            hint=self._fallback(),
        )

    def _fallback(self) -> str:
        where = {
            "checkpoint": "behind the last checkpoint",
            "start": "at the first record",
            "now": "behind the newest record",
        }
        return f"Reading starts {where[self._start]}"

    # -- what is handed out ------------------------------------------------------------------------

    def _completed(self, delivery: Delivery, before: Cursor) -> Delivery:
        """Complete what a lane delivered with what only the whole stream knows."""
        if isinstance(delivery, Chunk):
            return msgspec.structs.replace(delivery, before=before)
        if isinstance(delivery, SourceSwitch) and self._verdict:
            verdict, self._verdict = self._verdict, None
            return msgspec.structs.replace(delivery, verdict=verdict)
        return delivery

    def _tell(self, told: Idle | CaughtUp | Stalled) -> list[Idle | CaughtUp | Stalled]:
        """Say once that there is nothing, and again only after something else was said."""
        if self._told is type(told):
            return []
        self._told = type(told)
        return [told]

    def _why_idle(self) -> str:
        if not self._run.disk.is_directory(self._run.root):
            return f"the run directory {self._run.root} does not exist yet"
        if STREAMS[self._stream].sealed:
            return "no live log and no checkpoints yet"
        return f"nothing was written to the stream {self._stream} yet"
