"""Blocking work of a service, from asynchronous code."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import CapacityLimiter

from aegir_adapters.patching.interruption import Interrupted

__all__ = ["Worker", "interrupting", "single_error"]

T = TypeVar("T")


class Worker:
    """Runs blocking calls in a thread, one at a time, in the order in which they are asked for.

    A call that has begun is waited for, even if the task that waits is cancelled: nothing may go on
    with the model meanwhile. Belongs to the event loop that uses it first.
    """

    def __init__(self) -> None:
        # Made when it is used: an application may be made where another event loop runs, or none.
        self._turn: CapacityLimiter | None = None

    async def run(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Return what a blocking call returns."""
        if self._turn is None:
            self._turn = CapacityLimiter(1)
        return await anyio.to_thread.run_sync(partial(call, *args, **options), limiter=self._turn)

    @asynccontextmanager
    async def entered(self, context: AbstractContextManager[T]) -> AsyncIterator[T]:
        """Enter and leave a blocking context manager.

        It is left even under cancellation, and without waiting for its turn.
        """
        entered = await self.run(context.__enter__)
        try:
            yield entered
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(context.__exit__, None, None, None)


@asynccontextmanager
async def interrupting() -> AsyncIterator[threading.Event]:
    """Give an event that is set as soon as the block is cancelled, or left.

    Threads that look at it stop soon, although the block waits for them under cancellation too.
    """
    interrupt = threading.Event()
    with single_error():
        async with anyio.create_task_group() as group:
            group.start_soon(_set_when_cancelled, interrupt)
            try:
                yield interrupt
            except Interrupted:
                # Only cancellation interrupts, and this is where it is raised.
                await anyio.lowlevel.checkpoint()
                raise
            group.cancel_scope.cancel()


@contextmanager
def single_error() -> Iterator[None]:
    """Raise the error of a task group as itself, where only one of its tasks can raise."""
    try:
        yield
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _set_when_cancelled(interrupt: threading.Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        interrupt.set()
