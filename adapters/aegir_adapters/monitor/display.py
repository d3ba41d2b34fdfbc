"""The display in a terminal: look, draw, wait for a key, until told to quit."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from aegir_adapters.monitor import terminal as terminals
from aegir_adapters.monitor.fleet import Fleet
from aegir_adapters.monitor.frame import Frame, draw
from aegir_adapters.monitor.glyphs import glyphs_for
from aegir_adapters.monitor.order import ORDERS, ordered
from aegir_adapters.monitor.row import Row
from aegir_stream.clock import SystemClock
from aegir_stream.typing import Clock

__all__ = ["show"]


def show(
    fleet: Fleet, console: Console, *, interval_s: float = 1.0, clock: Clock | None = None
) -> signal.Signals | None:
    """Show runs until `q` is pressed or a signal comes; return that signal.

    The terminal is left as it was found, whatever happens, with the last state printed below.

    Args:
        fleet: the runs.
        console: the terminal.
        interval_s: how long to wait between two looks.
        clock: what the interval is measured with.
    """
    display = _Display(fleet, console, interval_s=interval_s, clock=clock or SystemClock())
    try:
        while (ended := display.run()) is signal.SIGTSTP:
            terminals.suspend()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return signal.SIGHUP  # The terminal is gone, whether or not the signal came first.
    # After a hang-up there is nobody to print for.
    if ended is not signal.SIGHUP:
        display.print_last()
    return ended


class _Display:
    """What is shown: the rows of the last look, in the order chosen."""

    def __init__(self, fleet: Fleet, console: Console, *, interval_s: float, clock: Clock) -> None:
        self._fleet = fleet
        self._console = console
        self._interval_s = interval_s
        self._clock = clock
        self._glyphs = glyphs_for(console.encoding)
        self._order = next(iter(ORDERS))
        self._rows: list[Row] = []
        self._drawn: tuple[object, ...] | None = None

    def run(self) -> signal.Signals | None:
        """Show the runs on the whole screen until a key or a signal ends it; return the signal."""
        self._drawn = None
        with terminals.opened() as terminal, _screen(self._console) as screen:
            due = self._clock.monotonic()
            while True:
                if self._clock.monotonic() >= due:
                    self._rows = self._fleet.look()
                    # Counted from the end of the look: many runs on a slow disk take their time.
                    due = self._clock.monotonic() + self._interval_s
                self._draw(screen, has_keys=terminal.has_keys)
                for happened in terminal.wait(due - self._clock.monotonic()):
                    if happened in terminals.ENDING or happened is signal.SIGTSTP:
                        return signal.Signals(happened)
                    if happened == "q":
                        return None
                    if happened == "s":
                        self._order = _after(self._order)

    def print_last(self) -> None:
        """Print the last state where the screen was opened."""
        lines = draw(self._frame(), width=self._console.width, glyphs=self._glyphs)
        self._console.print(Text("\n").join(lines), no_wrap=True, overflow="ignore", crop=False)

    def _draw(self, screen: Live, *, has_keys: bool) -> None:
        """Draw the screen if it is to be another one."""
        width, height = self._console.size
        frame = self._frame(has_keys=has_keys)
        lines = draw(frame, width=width, height=height, glyphs=self._glyphs)
        drawn = (width, height, *lines)
        if drawn != self._drawn:
            self._drawn = drawn
            screen.update(Text("\n").join(lines), refresh=True)

    def _frame(self, *, has_keys: bool = True) -> Frame:
        rows = ordered(self._rows, self._order)
        return Frame(rows=rows, order=self._order, notes=self._fleet.notes, has_keys=has_keys)


def _after(order: str) -> str:
    names = list(ORDERS)
    return names[(names.index(order) + 1) % len(names)]


@contextlib.contextmanager
def _screen(console: Console) -> Iterator[Live]:
    """Open the second screen of the terminal, and come back from it.

    Drawn over, never cleared, so it does not flicker.
    """
    with Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    ) as live:
        yield live
