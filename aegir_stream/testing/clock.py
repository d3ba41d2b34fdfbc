"""A clock that stands still."""

from __future__ import annotations

import anyio

__all__ = ["ManualClock"]


class ManualClock:
    """A clock that moves when a test says so (see `aegir_stream.typing.Clock`).

    Attributes:
        now: seconds, of every kind of time.
    """

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self._moved = anyio.Event()

    def time(self) -> float:
        """Return `now`."""
        return self.now

    def monotonic(self) -> float:
        """Return `now`."""
        return self.now

    def thread_time(self) -> float:
        """Return `now`."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Return when the clock has been moved by `seconds`."""
        until = self.now + seconds
        while self.now < until:
            await self._moved.wait()

    def advance(self, seconds: float) -> None:
        """Move the clock and wake whoever slept long enough."""
        self.now += seconds
        moved, self._moved = self._moved, anyio.Event()
        moved.set()
