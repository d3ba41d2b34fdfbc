"""What wakes the recorder's thread: rung from any thread, heard by one loop."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["Bell"]


class Bell:
    """Wakes a loop that waits for it.

    Thread safety: `ring` may be called from any thread, and from a signal handler.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._wake: Callable[[], object] = lambda: None
        self._rung = False

    def ring(self) -> None:
        """Wake whoever waits, now or next. Never waits."""
        # Waking costs a system call and hands the interpreter over: once is enough. What is noted
        # last is true even if Ctrl-C ends this half-way.
        with self._lock:
            if not self._rung:
                self._wake()
                self._rung = True

    @contextlib.contextmanager
    def heard(self) -> Iterator[asyncio.Event]:
        """Offer the event that the bell sets in the running loop; set at first."""
        import asyncio  # noqa: PLC0415 - see `Recorder._run`

        loop, awake = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._wake = functools.partial(loop.call_soon_threadsafe, awake.set)
        awake.set()
        yield awake
        with self._lock:
            self._wake = lambda: None

    async def wait(self, awake: asyncio.Event, *, timeout_s: float | None) -> None:
        """Return when it was rung since the last time, or after `timeout_s`."""
        import asyncio  # noqa: PLC0415 - likewise

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await awake.wait()
        awake.clear()
        with self._lock:
            self._rung = False

    def silence(self) -> None:
        """Make a forked child's copy harmless: the parent's locks may be held there for ever."""
        self._lock = threading.RLock()
        self._wake = lambda: None
