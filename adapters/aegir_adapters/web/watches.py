"""Watches of runs, shared by all who look at them: one look a second, in a worker thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import anyio
import anyio.to_thread

from aegir_adapters.web.live import Live, live_of
from aegir_stream.layout import RunDirectory
from aegir_stream.standing import Costs, RunStanding, RunWatch
from aegir_stream.typing import Clock

__all__ = ["FRESH_S", "Watched", "Watches"]

FRESH_S = 1.0
"""How long what was seen is taken for what is."""

MOST_WATCHES = 512
MOST_POINTS = 1_000


class Watches:
    """Watches of the runs that were asked for last.

    Thread safety: `of` may be called from any thread.

    Args:
        clock: tells what is fresh.
        costs: tells what a run has cost; its feed does if absent.
    """

    def __init__(self, clock: Clock, costs: Costs | None) -> None:
        self._clock = clock
        self._costs = costs
        self._kept: OrderedDict[Path, Watched] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run: RunDirectory) -> Watched:
        """Return the watch of a run."""
        with self._lock:
            watched = self._kept.pop(run.root, None) or self._begin(run)
            self._kept[run.root] = watched
            while len(self._kept) > MOST_WATCHES:
                self._kept.popitem(last=False)
        return watched

    def _begin(self, run: RunDirectory) -> Watched:
        watch = RunWatch(run, clock=self._clock, costs=self._costs, points=MOST_POINTS)
        return Watched(watch, self._clock)


class Watched:
    """One run, watched for everybody.

    Args:
        watch: looks at the run.
        clock: tells what is fresh.
    """

    def __init__(self, watch: RunWatch, clock: Clock) -> None:
        self._watch = watch
        self._clock = clock
        self._waiting = anyio.Lock()
        self._looking = threading.Lock()
        self._looked_s: float | None = None
        self._standing: RunStanding | None = None
        self._live: tuple[RunStanding, Live] | None = None

    async def look(self) -> Live:
        """Return where the run stands, by a look of its own or one that was just made.

        Those who wait for the same look wait in the loop, and take no thread each.
        """
        async with self._waiting:
            return await anyio.to_thread.run_sync(self._look_closely)

    def glance(self) -> RunStanding | None:
        """Return where the run stands; what is known already while another look takes long."""
        if self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()
        return self._standing

    def _look_closely(self) -> Live:
        with self._looking:
            standing = self._look()
            if self._live is None or self._live[0] is not standing:
                self._live = standing, live_of(standing)
            return self._live[1]

    def _look(self) -> RunStanding:
        if self._standing is None or not self._is_fresh():
            self._standing = self._watch.look()
            self._looked_s = self._clock.monotonic()
        return self._standing

    def _is_fresh(self) -> bool:
        return self._looked_s is not None and self._clock.monotonic() - self._looked_s < FRESH_S
