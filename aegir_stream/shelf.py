"""What is read behind a hub's ring: shared by those who are at the same place, and bounded.

A subscriber that has fallen behind is only a place in the log. What it needs next is read in pieces
and kept for a while, since those that fall behind together come back together. All of them use the
same few threads, so a crowd that catches up costs neither memory nor the hub's own reading.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.cursor import Cursor, Position
from aegir_stream.events import CaughtUp, SourceSwitch, Stalled
from aegir_stream.source import RunSource

__all__ = ["Block", "Ledger", "Shelf", "Stretch", "is_ahead"]

T = TypeVar("T")

_LIMIT_BYTES = 4 << 20
_THREADS = 4
_PARKED = 16
"""Readers that wait where others may come by. They hold no file open."""

_PIECE_BYTES = 64 << 10
_SMALL_PIECE_BYTES = 16 << 10
_LENT_BYTES = 4 << 20

_BLOCK_BYTES = 1024
_RECORD_BYTES = 192
"""What a block and a record weigh beside their bytes, measured with `tracemalloc`."""


class Block(msgspec.Struct, Generic[T], frozen=True, weakref=True):
    """One delivery or a piece of one, as a hub hands it out.

    Attributes:
        delivery: the delivery, or a piece of it.
        rendered: what it was rendered to.
        after: cursor behind it.
        weight: about how many bytes of memory it takes.
    """

    delivery: Delivery
    rendered: T
    after: Cursor
    weight: int = 0


class Stretch(msgspec.Struct, Generic[T], frozen=True):
    """What stands behind a place, and where that ends."""

    blocks: tuple[Block[T], ...]
    end: Cursor

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        return sum(block.weight for block in self.blocks)


class Ledger(Generic[T]):
    """Makes blocks, and knows how much memory is in those that only subscribers still hold.

    A subscriber that does not go on holds the block that it got last. A few such blocks may be
    large, since sending them takes less time; when there are many, further ones are made small.

    Args:
        render: turns a delivery into what subscribers want.

    Attributes:
        kept_bytes: weight of the blocks that are held for subscribers to come.
    """

    def __init__(self, render: Callable[[Delivery], T]) -> None:
        self._render = render
        # Reentrant: a block may die while another is counted.
        self._lock = threading.RLock()
        self._living_bytes = 0
        self.kept_bytes = 0

    @property
    def is_strained(self) -> bool:
        """Whether subscribers hold so much that blocks have to be small."""
        return self._living_bytes - self.kept_bytes > _LENT_BYTES

    def blocks_of(self, delivery: Delivery, after: Cursor) -> Iterator[Block[T]]:
        """Yield a delivery, in pieces if it must be, as blocks; thread-safe."""
        if not isinstance(delivery, Chunk):
            yield self._block(delivery, after)
        elif self.is_strained:
            for piece in _pieces(delivery, _SMALL_PIECE_BYTES):
                yield self._block(piece, piece.after)
        else:
            yield self._block(delivery, delivery.after)

    def keep(self, weight: int) -> None:
        """Count what is held from now on, or with a negative weight no longer."""
        with self._lock:
            self.kept_bytes += weight

    def _block(self, delivery: Delivery, after: Cursor) -> Block[T]:
        block = Block(delivery, self._render(delivery), after, _weight(delivery))
        self._live(block.weight)
        weakref.finalize(block, self._live, -block.weight).atexit = False
        return block

    def _live(self, weight: int) -> None:
        with self._lock:
            self._living_bytes += weight


class Shelf(Generic[T]):
    """Reads stretches of a stream for many subscribers.

    Args:
        open_source: opens the stream behind a cursor.
        ledger: makes the blocks.
    """

    def __init__(self, open_source: Callable[[str], RunSource], ledger: Ledger[T]) -> None:
        self._open_source = open_source
        self._ledger = ledger
        self._stretches: OrderedDict[str, Stretch[T]] = OrderedDict()
        self._held = 0
        self._parked: OrderedDict[str, RunSource] = OrderedDict()
        self._threads = anyio.Semaphore(_THREADS)

    async def of_newcomer(self, source: RunSource, tail: Cursor) -> Stretch[T] | None:
        """Return what a subscriber's own reader says first; `None` if it says nothing (more)."""
        async with self._threads:
            stretches = await self._read(source, tail)
        return self._first(stretches)

    async def behind(self, place: Cursor, tail: Cursor) -> Stretch[T] | None:
        """Return what stands behind a place, not beyond `tail`; `None` if nothing does."""
        if found := self._find(place, tail):
            return found
        async with self._threads:
            # Who had to wait may find that another has read it meanwhile.
            if found := self._find(place, tail):
                return found
            source = self._parked.pop(place.text(), None) or self._open_source(place.text())
            stretches = await self._read(source, tail, quiet=True)
        return self._first(stretches, place)

    def clear(self) -> None:
        """Forget what was read: a file is no longer what it was."""
        self._parked.clear()
        while self._stretches:
            self._drop()

    # -- what is kept ------------------------------------------------------------------------------

    def _first(self, stretches: list[Stretch[T]], place: Cursor | None = None) -> Stretch[T] | None:
        """Keep what was read behind a place; return what comes first."""
        for stretch in stretches:
            if place is not None:
                self._keep(place, stretch)
            place = stretch.end
        return stretches[0] if stretches else None

    def _find(self, place: Cursor, tail: Cursor) -> Stretch[T] | None:
        stretch = self._stretches.get(place.text())
        return None if stretch is None or is_ahead(stretch.end, tail) else stretch

    def _keep(self, place: Cursor, stretch: Stretch[T]) -> None:
        fleeting = any(isinstance(block.delivery, Stalled) for block in stretch.blocks)
        if fleeting or stretch.end == place or place.text() in self._stretches:
            return
        self._stretches[place.text()] = stretch
        self._hold(stretch.weight)
        while self._held > _LIMIT_BYTES:
            self._drop()

    def _drop(self) -> None:
        _, stretch = self._stretches.popitem(last=False)
        self._hold(-stretch.weight)

    def _hold(self, weight: int) -> None:
        self._held += weight
        self._ledger.keep(weight)

    def _park(self, source: RunSource) -> None:
        """Leave a reader at its place for whoever goes on there."""
        if source.cursor.lanes and source.judged:
            self._parked[source.cursor.text()] = source
        if len(self._parked) > _PARKED:
            self._parked.popitem(last=False)

    # -- reading -----------------------------------------------------------------------------------

    async def _read(
        self, source: RunSource, tail: Cursor, *, quiet: bool = False
    ) -> list[Stretch[T]]:
        stretches = await anyio.to_thread.run_sync(
            lambda: self._read_now(source, tail, quiet=quiet), abandon_on_cancel=True
        )
        self._park(source)
        return stretches

    def _read_now(self, source: RunSource, tail: Cursor, *, quiet: bool) -> list[Stretch[T]]:
        piece = _SMALL_PIECE_BYTES if self._ledger.is_strained else _PIECE_BYTES
        for stop in _stops(source, tail, piece=piece, newcomer=not quiet):
            blocks = [
                block
                for delivery, after in source.poll_placed(until=stop)
                if not _is_noise(delivery, quiet=quiet)
                for block in self._ledger.blocks_of(delivery, after)
            ]
            if blocks:
                return list(_stretches(blocks, source.cursor))
        return []


def _pieces(chunk: Chunk, limit_bytes: int) -> Iterator[Chunk]:
    """Cut a chunk into pieces of at most so many bytes, or of one longer record."""
    sizes = list(map(len, chunk.records))
    before, begin = chunk.before, 0
    while begin < len(sizes):
        end, size = begin + 1, sizes[begin]
        while end < len(sizes) and size + sizes[end] <= limit_bytes:
            size += sizes[end]
            end += 1
        piece = replace(
            chunk,
            records=chunk.records[begin:end],
            heads=chunk.heads[begin:end],
            ends=chunk.ends[begin:end],
            before=before,
        )
        yield piece
        before, begin = piece.after, end


def _weight(delivery: Delivery) -> int:
    """Return about how much memory a block takes, rendered to about what was read."""
    records = delivery.records if isinstance(delivery, Chunk) else ()
    return _BLOCK_BYTES + _RECORD_BYTES * len(records) + 2 * sum(map(len, records))


def is_ahead(place: Cursor, tail: Cursor) -> bool:
    """Tell whether `place` is behind records that stand after `tail`."""
    return any(
        (at.segment, at.offset) > _spot(tail, lane) if lane in tail.lanes else at.offset > 0
        for lane, at in place.lanes.items()
    )


def _spot(cursor: Cursor, lane: str) -> tuple[int, int]:
    at = cursor.lanes[lane]
    return at.segment, at.offset


def _stretches(blocks: list[Block[T]], end: Cursor) -> Iterator[Stretch[T]]:
    """Yield stretches of one piece of records each, with what was said before it."""
    gathered: list[Block[T]] = []
    for number, block in enumerate(blocks, 1):
        gathered.append(block)
        if number == len(blocks):
            yield Stretch(tuple(gathered), end)
        elif isinstance(block.delivery, Chunk):
            yield Stretch(tuple(gathered), block.after)
            gathered = []


def _is_noise(delivery: Delivery, *, quiet: bool) -> bool:
    """Tell what no subscriber needs, or only one that resumed by its own wish."""
    resumed = isinstance(delivery, SourceSwitch) and delivery.verdict == "resumed"
    return isinstance(delivery, CaughtUp) or (quiet and resumed)


def _stops(source: RunSource, tail: Cursor, *, piece: int, newcomer: bool) -> Iterator[Cursor]:
    """Yield where to read to, for as long as nothing is found: a piece on, at last to the tail.

    A newcomer reads no record at first: only what becomes of its wish is its own.
    """
    if not source.cursor.lanes:
        yield Cursor(tail.log, {})  # only finds out which lanes there are
    for stop in (_here, _a_piece_on, _a_segment_on)[0 if newcomer else 1 :]:
        here = source.cursor.lanes
        share = piece // max(1, len(here))
        yield Cursor(
            tail.log,
            {
                lane: min(goal, stop(here[lane], share)) if lane in here else goal
                for lane, goal in tail.lanes.items()
            },
        )
    yield tail


def _here(at: Position, _: int) -> Position:
    return at


def _a_piece_on(at: Position, piece: int) -> Position:
    """Return a place about a piece on, and the same one for all who are near by."""
    return Position(at.segment, ((at.offset + piece // 2) // piece + 1) * piece)


def _a_segment_on(at: Position, piece: int) -> Position:
    return Position(at.segment + 1, piece)
