"""The phases of a demo run, shown and timed."""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegir_adapters.demo.display import Reporter
    from aegir_adapters.train import Advance


class Stages:
    """Show each phase through a reporter and keep how long it took.

    Attributes:
        reporter: who is told.
        seconds: wall time of each phase that has ended, by title, in order.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, title: str, *, total: int) -> Iterator[Advance]:
        """Open a phase of `total` parts."""
        started = perf_counter()
        with self.reporter.phase(title, total=total) as advance:
            yield advance
        self.seconds[title] = perf_counter() - started

    def say(self, line: str) -> None:
        """Tell one thing worth knowing, between phases."""
        self.reporter.say(line)
