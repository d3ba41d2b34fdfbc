"""The clock of the running system; the only place that asks for the time."""

from __future__ import annotations

import time

import anyio

__all__ = ["SystemClock"]


class SystemClock:
    """Time as the operating system tells it (see `aegir_stream.typing.Clock`)."""

    def time(self) -> float:
        """Return wall-clock seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    def thread_time(self) -> float:
        """Return the CPU seconds that the calling thread has used."""
        return time.thread_time()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, or sooner by cancellation."""
        await anyio.sleep(seconds)
