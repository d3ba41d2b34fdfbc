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
import msgspec

from aegir_stream.chunk import Delivery
from aegir_stream.cursor import Cursor
from aegir_stream.events import CaughtUp, FellBehind, Idle, Reset, SourceSwitch, Stalled
from aegir_stream.shelf import Block, Ledger, Shelf, Stretch, is_ahead
from aegir_stream.source import RunSource, Start

__all__ = ["Block", "Hub", "HubStatistics", "OpenSource"]

T = TypeVar("T")

OpenSource = Callable[[str | None, Start], RunSource]
"""Opens the hub's stream from a cursor, or from a start."""

_RING_BYTES = 8 << 20
_RETRY_S = 0.25


class HubStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a hub holds and has done.

    Attributes:
        subscribers: open subscriptions.
        blocks: blocks in the ring.
        ring_bytes: about how much memory they hold.
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
        ring_bytes: bound on the memory of the ring; its newest block stays whatever it weighs.
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
        self._ring: deque[Block[T]] = deque()
        self._ledger = Ledger(render)
        self._shelf = Shelf(lambda place: open_source(place, "checkpoint"), self._ledger)
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
        subscription = _Subscription(self._shelf, self._open_source(after, start), self._render)
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
        if isinstance(delivery, Reset):
            self._shelf.clear()
        if not isinstance(delivery, CaughtUp | Idle):
            for block in self._ledger.blocks_of(delivery, after):
                self._push(block)
        news, self._news = self._news, anyio.Event()
        news.set()

    def _push(self, block: Block[T]) -> None:
        self._ring.append(block)
        self._delivered += 1
        self._hold(block.weight)
        while self._held > self._ring_bytes and len(self._ring) > 1:
            self._hold(-self._ring.popleft().weight)

    def _hold(self, weight: int) -> None:
        self._held += weight
        self._ledger.keep(weight)

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
            block = self._ring[-behind]
            subscription.ride(block)
            yield block


class _Subscription(Generic[T]):
    """One subscriber's place: in the file while it catches up, in the ring afterwards.

    Args:
        shelf: where it reads behind the ring.
        own: its own reader, which knows what it asked for and says first what becomes of that.
        render: the hub's.
    """

    def __init__(self, shelf: Shelf[T], own: RunSource, render: Callable[[Delivery], T]) -> None:
        self._shelf = shelf
        self._own: RunSource | None = own
        self._render = render
        self._stalled = False
        self.place = Cursor("0", {})
        self.seen = 0
        self.arrived = False

    async def catch_up(self, goal: tuple[Cursor, int]) -> AsyncGenerator[Block[T], None]:
        """Yield what stands in the file between this place and the goal.

        Afterwards `arrived` says whether the ring can take over: it cannot when the subscriber came
        with a cursor that is ahead of the hub or could not be judged yet, or when reading failed.
        """
        tail, self.seen = goal
        while stretch := await self._next(tail):
            for block in stretch.blocks:
                if self._is_told(block.delivery):
                    continue
                yield block
            self.place = stretch.end
        judged = self._own is None or self._own.judged
        self.arrived = judged and not self._stalled and not is_ahead(self.place, tail)
        if self.arrived and is_ahead(tail, self.place):
            fell = FellBehind(reason="the file no longer holds what the hub has read from it")
            yield Block(fell, self._render(fell), self.place)

    def ride(self, block: Block[T]) -> None:
        """Go behind a block of the ring."""
        if block.after.lanes:
            self._own, self.place = None, block.after
        self.seen += 1

    async def _next(self, tail: Cursor) -> Stretch[T] | None:
        own = self._own
        if own is None:
            return await self._shelf.behind(self.place, tail)
        stretch = await self._shelf.of_newcomer(own, tail)
        self.place = own.cursor
        if stretch and any(isinstance(b.delivery, SourceSwitch) for b in stretch.blocks):
            self._own = None
        return stretch

    def _is_told(self, delivery: Delivery) -> bool:
        """Tell whether this is known already: that reading still fails."""
        known, self._stalled = self._stalled, isinstance(delivery, Stalled)
        return known and self._stalled
