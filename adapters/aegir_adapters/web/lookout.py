"""Looks at all runs under a root, on behalf of all who ask.

Nobody's question makes the server look twice in a second, and no look keeps the server's loop: it
is done in a worker thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec

from aegir_adapters.web.live import Live
from aegir_adapters.web.watches import FRESH_S, Watches
from aegir_stream.catalog import Catalog, Setup
from aegir_stream.layout import RunDirectory
from aegir_stream.standing import Costs, RunStanding
from aegir_stream.typing import Clock

__all__ = ["KnownRun", "Lookout", "RunList", "shown"]

KNOWN_S = 10.0
"""How long a run that was found counts as found: a look at ten thousand of them is no trifle."""

PAGE_SIZE = 200

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")

T = TypeVar("T")


class KnownRun(msgspec.Struct, frozen=True):
    """A run that was found.

    Attributes:
        label: its setup, as it is shown.
        index: its number there.
        run: the run directory.
        feed: its progress feed, whether it has one or not.
    """

    label: str
    index: int
    run: RunDirectory
    feed: Path


class RunList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the list of runs, newest first.

    Attributes:
        entries: the runs of the page: what they are, where they stand, and when they were last
            written to, seconds since the epoch.
        page: number of the page, from 1.
        pages: how many there are.
        runs: how many runs there are on all pages.
        setups: how many setups there are.
    """

    entries: list[tuple[KnownRun, RunStanding | None, float]]
    page: int
    pages: int
    runs: int
    setups: int


class Lookout:
    """Finds and watches the runs under a root. Belongs to one event loop.

    Args:
        root: configuration of the root, which may be a run itself and need not exist yet.
        clock: tells what is fresh.
        costs: tells what a run has cost; its feed does if absent.
        page_size: how many runs a page lists.
    """

    def __init__(
        self,
        root: RunDirectory,
        *,
        clock: Clock,
        costs: Costs | None = None,
        page_size: int = PAGE_SIZE,
    ) -> None:
        self._root = root.root
        self._clock = clock
        self._page_size = page_size
        self._catalog = Catalog(root.root, cfg=root.cfg, disk=root.disk, clock=clock, costs=costs)
        self._watches = Watches(clock, costs)
        self._turn = anyio.Lock()
        self._found: dict[str, list[KnownRun]] = {}
        self._found_s: float | None = None
        self._by_age: list[tuple[float, KnownRun]] = []
        self._by_age_s: float | None = None

    async def find(self, label: str, index: str) -> KnownRun | None:
        """Return the run of a number in a setup, `None` if there is none."""
        known = self._of(label, index) if self._age_s(self._found_s) < KNOWN_S else None
        if known is None:
            await self._locked(self._find)
            known = self._of(label, index)
        return known

    async def live(self, known: KnownRun) -> Live:
        """Return where a run stands."""
        return await self._watches.of(known.run).look()

    async def page(self, *, label: str | None = None, page: int = 1) -> RunList | None:
        """Return a page of all runs, or of those of a setup; `None` if there is no such setup.

        A page that is not there is the nearest that is.
        """
        return await self._locked(partial(self._list, label, page))

    async def root_run(self) -> KnownRun | None:
        """Return the root, if it is a run itself."""
        await self._locked(self._find)
        runs = next(iter(self._found.values()), [])
        return runs[0] if runs and runs[0].run.root == self._root else None

    async def has_runs(self) -> bool:
        """Tell whether there is any run."""
        await self._locked(self._find)
        return bool(self._found)

    # -- in a worker thread, one at a time --------------------------------------------------------

    async def _locked(self, work: Callable[[], T]) -> T:
        async with self._turn:
            return await anyio.to_thread.run_sync(work)

    def _find(self) -> None:
        if self._age_s(self._found_s) < FRESH_S:
            return
        try:
            setups = self._catalog.setups()
        except OSError:
            setups = []  # What this user may not read is not there.
        self._found = dict(map(self._known, setups))
        self._found_s = self._clock.monotonic()

    def _list(self, label: str | None, page: int) -> RunList | None:
        self._find()
        if label is not None and label not in self._found:
            return None
        self._sort()
        runs = [entry for entry in self._by_age if label is None or entry[1].label == label]
        pages = max(1, -(-len(runs) // self._page_size))
        page = min(max(1, page), pages)
        part = runs[(page - 1) * self._page_size : page * self._page_size]
        return RunList(
            entries=[(known, self._watches.of(known.run).glance(), s) for s, known in part],
            page=page,
            pages=pages,
            runs=len(runs),
            setups=len(self._found),
        )

    def _sort(self) -> None:
        if self._age_s(self._by_age_s) < FRESH_S:
            return
        known = [(_written_s(one), one) for runs in self._found.values() for one in runs]
        known.sort(key=itemgetter(0), reverse=True)
        self._by_age, self._by_age_s = known, self._clock.monotonic()

    # -- parts -------------------------------------------------------------------------------------

    def _known(self, setup: Setup) -> tuple[str, list[KnownRun]]:
        """Return the runs of a setup; the same objects as before where nothing is different."""
        label = shown(setup.label)
        before = self._found.get(label, [])
        runs = [
            before[index]
            if index < len(before) and before[index].run is run
            else KnownRun(label, index, run, run.live("progress"))
            for index, run in enumerate(setup.runs)
        ]
        return label, runs

    def _of(self, label: str, index: str) -> KnownRun | None:
        """Return a run that was found, looked up by the text of its number."""
        runs = self._found.get(label, [])
        number = int(index) if _NUMBER.fullmatch(index) else len(runs)
        return runs[number] if number < len(runs) else None

    def _age_s(self, seen_s: float | None) -> float:
        return float("inf") if seen_s is None else self._clock.monotonic() - seen_s


def shown(name: str) -> str:
    """Return the name of a file as text: bytes that are none are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _written_s(known: KnownRun) -> float:
    """Return when a run was last written to, as far as its feed or its directory tells; 0 if gone.

    One look, as there may be ten thousand runs.
    """
    disk = known.run.disk
    try:
        status = disk.status(known.feed) or disk.status(known.run.root)
    except OSError:
        return 0.0
    return status.modified_ns / 1e9 if status else 0.0
