"""One tail of a stream, many subscribers.

The hub reads the stream once, renders each delivery once and keeps the newest ones in a ring that
is bounded in bytes. A subscriber is only a place in that ring: one that falls out of it, or joins
with an older cursor, reads the file by itself until it is back in the ring. So a slow subscriber
costs no memory and loses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
import msgspec

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.cursor import Cursor
from aegir_stream.events import CaughtUp, FellBehind, Idle, SourceSwitch
from aegir_stream.source import RunSource, Start

__all__ = ["Block", "Hub", "HubStatistics", "OpenSource"]

T = TypeVar("T")

OpenSource = Callable[[str | None, Start], RunSource]
"""Opens the hub's stream from a cursor, or from a start."""

_RING_BYTES = 8 << 20
_BLOCK_BYTES = 256
"""What a block weighs beside its records."""

_RETRY_S = 0.25


class Block(msgspec.Struct, Generic[T], frozen=True):
    """One delivery, and what it was rendered to."""

    delivery: Delivery
    rendered: T


class HubStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a hub holds and has done.

    Attributes:
        subscribers: open subscriptions.
        blocks: blocks in the ring.
        ring_bytes: their size, as far as records go.
        delivered: blocks that went through the ring.
        evicted: blocks that left it.
        catch_ups: times a subscriber had to read the file by itself.
    """

    subscribers: int
    blocks: int
    ring_bytes: int
    delivered: int
    evicted: int
    catch_ups: int


class Hub(Generic[T]):
    """Shares one tail of a stream.

    Run `run` in a task group; `subscribe` works from any task of the same loop.

    Args:
        open_source: opens the stream.
        render: turns a delivery into what subscribers want; called once per delivery for all
            that are in the ring. Pure.
        ring_bytes: bound on the records kept for subscribers.
    """

    def __init__(
        self,
        open_source: OpenSource,
        *,
        render: Callable[[Delivery], T],
        ring_bytes: int = _RING_BYTES,
    ) -> None:
        self._open_source = open_source
        self._render = render
        self._ring_bytes = ring_bytes
        self._ring: deque[tuple[Block[T], Cursor, int]] = deque()
        self._held = 0
        self._delivered = 0
        self._tail: Cursor | None = None
        self._news = anyio.Event()
        self._subscribers = 0
        self._catch_ups = 0

    async def run(self) -> None:
        """Read the stream until cancelled, from the newest records on."""
        source = self._open_source(None, "now")
        async with aclosing(source.follow_placed()) as deliveries:
            async for delivery, after in deliveries:
                self._admit(delivery, after)

    async def subscribe(
        self, *, after: str | None = None, start: Start = "checkpoint"
    ) -> AsyncGenerator[Block[T], None]:
        """Yield every block from a cursor, or from a start, on, for as long as the caller iterates.

        Order, loss and duplicates are those of `RunSource`. The first block is a `SourceSwitch`
        with the verdict on the cursor, or an `Idle`. Any number of subscribers may iterate, each at
        its own pace; close the iterator with `contextlib.aclosing`.
        """
        self._subscribers += 1
        subscription = _Subscription(self._open_source(after, start), self._render)
        try:
            while True:
                async with aclosing(subscription.catch_up(await self._goal())) as blocks:
                    async for block in blocks:
                        yield block
                if not subscription.arrived:
                    # Ahead of the hub, which will see the same soon; or reading fails for now.
                    with anyio.move_on_after(_RETRY_S):
                        await self._next_news()
                    continue
                async with aclosing(self._ride(subscription)) as blocks:
                    async for block in blocks:
                        yield block
                # Fell out of the ring: read the file from where the ring was left.
                self._catch_ups += 1
                source = self._open_source(subscription.place.text(), start)
                subscription = _Subscription(source, self._render, quiet=True)
        finally:
            self._subscribers -= 1

    def statistics(self) -> HubStatistics:
        """Return what the hub holds and has done."""
        return HubStatistics(
            subscribers=self._subscribers,
            blocks=len(self._ring),
            ring_bytes=self._held,
            delivered=self._delivered,
            evicted=self._delivered - len(self._ring),
            catch_ups=self._catch_ups,
        )

    # -- the ring ----------------------------------------------------------------------------------

    def _admit(self, delivery: Delivery, after: Cursor) -> None:
        self._tail = after
        if not isinstance(delivery, CaughtUp | Idle):
            records = delivery.records if isinstance(delivery, Chunk) else ()
            size = _BLOCK_BYTES + sum(map(len, records))
            self._ring.append((Block(delivery, self._render(delivery)), after, size))
            self._delivered += 1
            self._held += size
            while self._held > self._ring_bytes and len(self._ring) > 1:
                self._held -= self._ring.popleft()[2]
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _goal(self) -> tuple[Cursor, int]:
        """Return the place where the ring ends, and how many blocks went through it."""
        while self._tail is None:
            await self._next_news()
        return self._tail, self._delivered

    async def _next_news(self) -> None:
        await self._news.wait()

    async def _ride(self, subscription: _Subscription[T]) -> AsyncGenerator[Block[T], None]:
        """Yield the blocks of the ring from the subscription's place on, until it falls out."""
        while True:
            behind = self._delivered - subscription.seen
            if behind > len(self._ring):
                return
            if not behind:
                await self._next_news()
                continue
            block, subscription.place, _ = self._ring[-behind]
            subscription.seen += 1
            yield block


class _Subscription(Generic[T]):
    """One subscriber's place: in the file while it catches up, in the ring afterwards.

    Args:
        source: its own reader.
        render: the hub's.
        quiet: leave out the `SourceSwitch` that resuming begins with.
    """

    def __init__(
        self, source: RunSource, render: Callable[[Delivery], T], *, quiet: bool = False
    ) -> None:
        self._source = source
        self._render = render
        self._quiet = quiet
        self.place = Cursor("0", {})
        self.seen = 0
        self.arrived = False

    async def catch_up(self, goal: tuple[Cursor, int]) -> AsyncGenerator[Block[T], None]:
        """Yield what stands in the file between this place and the goal.

        Afterwards `arrived` says whether the ring can take over: it cannot when the subscriber came
        with a cursor that is ahead of the hub or could not be judged yet, or when reading failed.
        """
        source, (tail, delivered) = self._source, goal
        while deliveries := await self._read(tail):
            for delivery in deliveries:
                if not self._is_noise(delivery):
                    yield Block(delivery, self._render(delivery))
        self.place, self.seen = source.cursor, delivered
        self.arrived = source.judged and not source.stalled and not _ahead(self.place, tail)
        if self.arrived and _behind(self.place, tail):
            fell = FellBehind(reason="the file no longer holds what the hub has read from it")
            yield Block(fell, self._render(fell))

    async def _read(self, tail: Cursor) -> list[Delivery]:
        return await anyio.to_thread.run_sync(
            lambda: self._source.poll(until=tail), abandon_on_cancel=True
        )

    def _is_noise(self, delivery: Delivery) -> bool:
        resumed = isinstance(delivery, SourceSwitch) and delivery.verdict == "resumed"
        return isinstance(delivery, CaughtUp) or (self._quiet and resumed)


def _ahead(place: Cursor, tail: Cursor) -> bool:
    """Tell whether `place` is behind records that the ring, from `tail` on, would bring again."""
    return any(
        (at.segment, at.offset) > _spot(tail, lane) if lane in tail.lanes else at.offset > 0
        for lane, at in place.lanes.items()
    )


def _behind(place: Cursor, tail: Cursor) -> bool:
    return any(
        lane not in place.lanes or _spot(place, lane) < (at.segment, at.offset)
        for lane, at in tail.lanes.items()
    )


def _spot(cursor: Cursor, lane: str) -> tuple[int, int]:
    at = cursor.lanes[lane]
    return at.segment, at.offset
