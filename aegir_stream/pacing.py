"""When to look again: polling is the truth, file notification only a hint.

Network file systems notify nobody, so a reader polls, faster while there is news. On Linux an
inotify watch of the run directory cuts the wait short when a process of the same machine writes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import anyio

from aegir_stream.typing import Clock

__all__ = ["FileHint", "Pacer"]

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x80, 0x100
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, getattr(os, "O_CLOEXEC", 0)


class Pacer:
    """Waits between looks: `fastest_s` after news, twice as long after each look without.

    Args:
        clock: what to sleep on.
        fastest_s: first wait after news.
        slowest_s: longest wait.
        notify: whether file notification may cut waits short.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        fastest_s: float = 0.005,
        slowest_s: float = 0.25,
        notify: bool = True,
    ) -> None:
        self._clock = clock
        self._fastest_s = fastest_s
        self._slowest_s = slowest_s
        self._notify = notify
        self._hint: FileHint | None = None
        self._wait_s = fastest_s

    async def pause(self, directory: Path) -> None:
        """Wait after a look that found nothing in a directory.

        The first time, file notification is taken up where there is any; then this returns at once,
        for what was written between that look and the watch.
        """
        if self._notify and self._hint is None:
            self._hint = FileHint.of(directory)
            if self._hint:
                return
        await self.wait()

    def close(self) -> None:
        """Stop watching."""
        if self._hint:
            self._hint.close()

    def news(self) -> None:
        """Something was found: be quick again."""
        self._wait_s = self._fastest_s

    async def wait(self) -> None:
        """Return when it is time to look again."""
        wait_s = self._wait_s
        self._wait_s = min(2 * wait_s, self._slowest_s)
        if self._hint is None:
            await self._clock.sleep(wait_s)
            return
        # A working hint makes quick polling pointless; the slow poll stays as the truth.
        with anyio.move_on_after(self._slowest_s):
            await self._hint.wait()


class FileHint:
    """An inotify watch of a directory.

    Use `FileHint.of`, which returns `None` where there is no inotify.

    Args:
        descriptor: inotify descriptor with its watch in place; owned from here on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, directory: Path) -> FileHint | None:
        """Watch a directory for writes; `None` if the system cannot, or it does not exist."""
        if not sys.platform.startswith("linux"):
            return None
        import ctypes  # noqa: PLC0415 - only who follows a file needs it

        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if descriptor < 0:
            return None
        events = _IN_MODIFY | _IN_CREATE | _IN_MOVED_TO
        if libc.inotify_add_watch(descriptor, os.fsencode(directory), events) < 0:
            os.close(descriptor)
            return None
        return cls(descriptor)

    async def wait(self) -> None:
        """Return when something was written since the last call."""
        await anyio.wait_readable(self._descriptor)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, 1 << 16):
                pass

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
