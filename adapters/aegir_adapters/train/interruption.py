"""Ctrl-C and SIGTERM while a run trains: the step ends, its checkpoint is saved, the log closes."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Interruption"]

_STDERR = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nStopping after this step, with a checkpoint; once more stops at once\n"


class Interruption:
    """What signals asked for.

    The first one while training asks for an orderly end; outside training, and the second time, the
    main thread gets a `KeyboardInterrupt`.

    Attributes:
        signal: number of the signal that came first, `None` without one.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._orderly = False

    @property
    def asked(self) -> bool:
        """Whether an end was asked for."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended; 0 without one."""
        return 128 + self.signal if self.signal is not None else 0

    @contextmanager
    def heard(self) -> Iterator[Interruption]:
        """Hear the signals in this block; afterwards they do what they did before."""
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def orderly(self) -> Iterator[None]:
        """Let the first signal in this block ask for an orderly end."""
        self._orderly = True
        try:
            yield
        finally:
            self._orderly = False

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or number
        if not (first and self._orderly):
            raise KeyboardInterrupt
        # Printing could meet a print of the main thread; writing cannot.
        os.write(_STDERR, _NOTICE)
