"""Work that runs while somebody wants its results: begun by the first, ended by the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Generic, TypeVar

__all__ = ["WhileWanted"]

T = TypeVar("T")


class WhileWanted(Generic[T]):
    """Shares one worker among all who want it at the same time.

    A mounted application is told neither when its server starts nor when it stops, so there is no
    task group that the worker could live in; it lives exactly as long as its users do. Web servers
    run on asyncio, and so does this.

    Args:
        make: returns a fresh worker.
        run: what the worker does until it is cancelled.
    """

    def __init__(self, make: Callable[[], T], run: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._run = run
        self._users = 0
        self._worker: T | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def worker(self) -> T | None:
        """The worker, while it is at work."""
        return self._worker

    @asynccontextmanager
    async def use(self) -> AsyncIterator[T]:
        """Keep the worker at work while the block runs.

        Raises:
            Exception: what the worker failed with; the block is interrupted then.
        """
        worker, task = self._begun()
        self._users += 1
        with _interrupted_by(task):
            try:
                yield worker
            finally:
                self._users -= 1
                if not self._users:
                    self._end()

    def _begun(self) -> tuple[T, asyncio.Task[None]]:
        if self._worker is None or self._task is None or self._task.done():
            self._worker = self._make()
            self._task = asyncio.create_task(self._work(self._worker), name="aegir-web-shared")
        return self._worker, self._task

    def _end(self) -> None:
        if self._task:
            self._task.cancel()
        self._worker = self._task = None

    async def _work(self, worker: T) -> None:
        with suppress(asyncio.CancelledError):
            await self._run(worker)


@contextmanager
def _interrupted_by(work: asyncio.Task[None]) -> Iterator[None]:
    """Cancel the block when `work` fails, and raise what it failed with instead."""
    user = asyncio.current_task()
    failures: list[BaseException] = []

    def interrupt(_: asyncio.Task[None]) -> None:
        if user and not work.cancelled() and (failure := work.exception()):
            failures.append(failure)
            user.cancel()

    work.add_done_callback(interrupt)
    try:
        yield
    except asyncio.CancelledError as error:
        if user is None or not failures:
            raise
        user.uncancel()
        raise failures[0] from error
    finally:
        work.remove_done_callback(interrupt)
