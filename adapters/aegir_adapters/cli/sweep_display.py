"""Where a sweep is shown while it runs: in a terminal, as lines of JSON, or nowhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from aegir_adapters.cli.sweep_picture import draw
from aegir_stream import codec
from aegir_stream.clock import SystemClock
from aegir_stream.sweep_events import SweepEvent
from aegir_stream.typing import Clock
from aegir_stream.views.sweep import SweepGrids

__all__ = ["Display", "JSONLines", "LivePicture", "print_picture"]

_SHORTEST_INTERVAL_S = 0.1


class Display(Protocol):
    """Shows a sweep as it goes on; a context manager."""

    def show(self, events: Sequence[SweepEvent], grids: SweepGrids) -> None:
        """Take over what is new, and the grids that it led to."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End; what was shown last stays."""


class JSONLines:
    """Prints the lines of the record."""

    def show(self, events: Sequence[SweepEvent], grids: SweepGrids) -> None:  # noqa: ARG002
        """Print each event."""
        sys.stdout.write("".join(codec.encode(event).decode() for event in events))
        sys.stdout.flush()

    def __enter__(self) -> Self:
        """Return the display."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


class LivePicture:
    """Draws the grids in place, and once more in full at the end.

    Args:
        console: the terminal.
        clock: tells when to draw again.
    """

    def __init__(self, console: Console, *, clock: Clock | None = None) -> None:
        self._console = console
        self._clock = clock or SystemClock()
        self._grids: SweepGrids | None = None
        self._drawn_s: float | None = None
        # What does not fit is cut while it runs: a terminal cannot take back what has scrolled.
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="ellipsis"
        )

    def show(self, events: Sequence[SweepEvent], grids: SweepGrids) -> None:  # noqa: ARG002
        """Draw the grids, at most ten times a second."""
        self._grids = grids
        now = self._clock.monotonic()
        if self._drawn_s is None or now - self._drawn_s >= _SHORTEST_INTERVAL_S:
            self._drawn_s = now
            self._live.update(_picture(grids, self._console), refresh=True)

    def __enter__(self) -> Self:
        """Take the terminal's lines below the cursor."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back, and print the last state there."""
        self._live.stop()
        if self._grids is not None:
            print_picture(self._grids, self._console)


def print_picture(grids: SweepGrids, console: Console, *, pair: int | None = None) -> None:
    """Print the grids of a sweep, or those of one of its pairs."""
    console.print(_picture(grids, console, pair=pair))


def _picture(grids: SweepGrids, console: Console, *, pair: int | None = None) -> Text:
    # NO_COLOR leaves the terminal's own system as it is.
    colours = console.color_system is not None and not console.no_color
    lines = draw(grids, width=console.width, colours=colours, pair=pair)
    return Text("\n", overflow="fold").join(lines)
