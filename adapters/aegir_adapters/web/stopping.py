"""Streams end when their server stops, or the server would wait for them for ever.

uvicorn waits for open responses before it tells the application that it stops, and a mounted
application is not told at all. So one of the open streams looks, on behalf of all.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import anyio

__all__ = ["Stopping", "server_is_stopping"]

_LOOK_INTERVAL_S = 0.1


class Stopping:
    """Tells open streams that it is time to end. Safe to ask to stop from any thread.

    Args:
        asked: what else says that the server stops; asked ten times a second while a stream is
            open.
    """

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked
        self._stopped = False
        self._turn = anyio.Lock()

    def begin(self) -> None:
        """Let streams be opened (again)."""
        self._stopped = False

    def stop(self) -> None:
        """End every stream, now and from now on."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether streams should end."""
        self._stopped = self._stopped or self._asked()
        return self._stopped

    async def wait(self) -> None:
        """Return when streams should end."""
        async with self._turn:
            while not self.stopped:  # noqa: ASYNC110 - a signal handler sets no event
                await anyio.sleep(_LOOK_INTERVAL_S)


def server_is_stopping() -> bool:
    """Return whether a uvicorn server of this process was asked to stop by a signal.

    uvicorn's signal handler is a method of its server, which holds the answer. Nothing is changed
    or called. A server without signal handlers (in a thread) is not found: give it
    `Stopping.stop`. See https://github.com/Kludex/uvicorn/issues/451.
    """
    handlers = (signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
    owners = (getattr(handler, "__self__", None) for handler in handlers)
    return any(getattr(owner, "should_exit", False) is True for owner in owners)
