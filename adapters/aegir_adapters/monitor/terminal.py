"""The terminal as a place that keys and signals come from, and that is left as it was found."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import TypeAlias

__all__ = ["ENDING", "Happening", "Terminal", "opened", "suspend"]

Happening: TypeAlias = str | signal.Signals
"""A key that was pressed, or a signal that came."""

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Signals that end the monitor."""

_TAKEN = (*sorted(ENDING), signal.SIGTSTP, signal.SIGWINCH)
_READ_BYTES = 1024


class Terminal:
    """Waits for what happens.

    Attributes:
        has_keys: whether standard input is a terminal.
    """

    def __init__(self, *, keys: int | None, signals: int) -> None:
        self.has_keys = keys is not None
        self._keys = keys
        self._signals = signals

    def wait(self, timeout_s: float) -> list[Happening]:
        """Return what has happened, as soon as something does; nothing after the timeout."""
        watched = [fd for fd in (self._keys, self._signals) if fd is not None]
        ready, _, _ = select.select(watched, [], [], max(0.0, timeout_s))
        happened: list[Happening] = []
        if self._signals in ready:
            numbers = os.read(self._signals, _READ_BYTES)
            happened += [signal.Signals(number) for number in numbers if number in _TAKEN]
        if self._keys in ready:
            happened += self._pressed()
        return happened

    def _pressed(self) -> list[Happening]:
        try:
            pressed = os.read(self._keys or 0, _READ_BYTES)
        except OSError:
            pressed = b""
        # A terminal that is gone has nothing to read, and says so at once, again and again.
        return list(pressed.decode("ascii", "replace")) if pressed else [signal.SIGHUP]


@contextlib.contextmanager
def opened() -> Iterator[Terminal]:
    """Take keys one at a time, unechoed, and signals as they come; undo that in any case.

    Signals only wake `Terminal.wait`, so that none breaks into the drawing of a screen.
    """
    keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
    with _waking() as signals, _unbuffered(keys):
        yield Terminal(keys=keys, signals=signals)


def suspend() -> None:
    """Stop this process as Ctrl-Z does; return when it goes on."""
    os.kill(os.getpid(), signal.SIGTSTP)


@contextlib.contextmanager
def _waking() -> Iterator[int]:
    """Make signals readable at the end of a pipe."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, _ignore) for number in _TAKEN}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the pipe says that it came."""


@contextlib.contextmanager
def _unbuffered(keys: int | None) -> Iterator[None]:
    if keys is None:
        yield
        return
    before = termios.tcgetattr(keys)
    # Now, not after what was typed ahead is thrown away: it is the shell's, or a key for us.
    tty.setcbreak(keys, termios.TCSANOW)
    try:
        yield
    finally:
        # A terminal that is gone needs nothing.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(keys, termios.TCSANOW, before)
