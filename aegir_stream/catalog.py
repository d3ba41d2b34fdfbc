"""All runs under one root: setups, which are its directories, and the runs inside them.

Labels and numbers are looked up in what was found, never joined into a path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from aegir_stream.clock import SystemClock
from aegir_stream.config import P5Cfg
from aegir_stream.disk import Disk
from aegir_stream.feed_rows import fields_of_row, finite
from aegir_stream.launches import launches_in
from aegir_stream.layout import RunDirectory
from aegir_stream.listing import Listing
from aegir_stream.manifest import look_at_manifest
from aegir_stream.standing import Costs, RunStanding, RunWatch
from aegir_stream.typing import Clock

__all__ = ["Catalog", "Setup"]

_SPARK_POINTS = 60
_HEAD_BYTES = 4096
_DIGITS = re.compile(r"(\d+)")


class Setup(msgspec.Struct, frozen=True):
    """Runs that belong together.

    Attributes:
        label: name of their directory.
        runs: the runs, numbered by their start; those whose start is unknown come first, by name.
    """

    label: str
    runs: tuple[RunDirectory, ...]


class Catalog:
    """The runs under a root, looked at again only where something changed.

    A directory under the root is a setup, and the run directories in it are its runs. One that is a
    run itself, and a root that is one, is a setup with run 0. Names that begin with a dot, and
    directories that hold no run, are passed over.

    Thread safety: none; one thread at a time owns it.

    Args:
        root: the directory; it need not be there yet.
        cfg: file names of the runs; its directory is not used.
        disk: the file system.
        clock: tells how long things were left alone.
        costs: tells what a run has cost; its feed does if absent.
        points: how many points the curves of an overview have at most.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        cfg: P5Cfg | None = None,
        disk: Disk | None = None,
        clock: Clock | None = None,
        costs: Costs | None = None,
        points: int = _SPARK_POINTS,
    ) -> None:
        cfg = msgspec.structs.replace(cfg or P5Cfg(), output_dir=str(root))
        self._clock = clock or SystemClock()
        self._top = _Place(RunDirectory(cfg, disk=disk), clock=self._clock)
        self._costs = costs
        self._points = points
        self._watches: dict[str, RunWatch] = {}

    def setups(self) -> list[Setup]:
        """Return what is there now, in the order of the labels.

        Raises:
            OSError: the root is there and cannot be listed.
        """
        self._top.look()
        if self._top.is_run:
            setups = [Setup(self._root_label, (self._top.run,))]
        else:
            found = ((name, self._runs_in(place)) for name, place in self._top.below())
            setups = [Setup(name, runs) for name, runs in found if runs]
        there = {run.cfg.output_dir for setup in setups for run in setup.runs}
        self._watches = {key: w for key, w in self._watches.items() if key in there}
        return setups

    def find(self, label: str, index: int) -> RunDirectory | None:
        """Return a run, `None` if there is no setup of that name or it has no such run.

        Raises:
            OSError: the root is there and cannot be listed.
        """
        self._top.look()
        if self._top.is_run:
            place = self._top if label == self._root_label else None
        else:
            place = dict(self._top.below()).get(label)
        runs = self._runs_in(place) if place else ()
        return runs[index] if 0 <= index < len(runs) else None

    def standing(self, run: RunDirectory) -> RunStanding:
        """Return where a run stands, with the short curve of an overview."""
        key = run.cfg.output_dir
        if key not in self._watches:
            self._watches[key] = RunWatch(
                run, clock=self._clock, costs=self._costs, points=self._points
            )
        return self._watches[key].look()

    @property
    def _root_label(self) -> str:
        return self._top.run.root.resolve().name or "run"

    def _runs_in(self, place: _Place) -> tuple[RunDirectory, ...]:
        """Return the runs of a setup, in order."""
        try:
            place.look()
            if place.is_run:
                return (place.run,)
            inside = [below for _, below in place.below() if below.look_for_run()]
        except OSError:
            return ()  # What this user may not read is not there.
        return tuple(one.run for one in sorted(inside, key=_Place.order))


class _Place:
    """A directory that may be a run, or hold some.

    Attributes:
        run: the directory, taken for a run.
        is_run: whether it is one.
    """

    def __init__(self, run: RunDirectory, *, clock: Clock) -> None:
        self.run = run
        self.is_run = False
        self._clock = clock
        self._listing = Listing(run.disk, run.root, clock=clock)
        self._below: dict[str, _Place] = {}
        self._order: tuple[float, list[str | int]] | None = None

    def look(self) -> None:
        """Look at the names again.

        Raises:
            OSError: the directory is there and cannot be listed.
        """
        if not self._listing.look():
            return
        names = self._listing.names
        self.is_run = self.run.is_run(names)
        seen = [] if self.is_run else [name for name in names if not name.startswith(".")]
        self._below = {name: self._below.get(name) or self._place(name) for name in seen}

    def look_for_run(self) -> bool:
        """Look at the names again, and tell whether this is a run."""
        try:
            self.look()
        except OSError:
            return False
        return self.is_run

    def below(self) -> Iterable[tuple[str, _Place]]:
        """Return what is in the directory, in the order of the names, unless it is a run."""
        return self._below.items()

    def order(self) -> tuple[float, list[str | int]]:
        """Return what runs are sorted by: the start, then the name with its numbers as numbers."""
        if self._order is None:
            start = _start(self.run)
            parts = _DIGITS.split(self.run.root.name)
            name: list[str | int] = [int(p) if n % 2 else p for n, p in enumerate(parts)]
            if start is None:
                return -math.inf, name
            self._order = start, name
        return self._order

    def _place(self, name: str) -> _Place:
        cfg = msgspec.structs.replace(self.run.cfg, output_dir=str(self.run.root / name))
        return _Place(RunDirectory(cfg, disk=self.run.disk), clock=self._clock)


def _start(run: RunDirectory) -> float | None:
    """Return when a run began, by its manifest or by the first row of its feed."""
    manifest = look_at_manifest(run)
    told = [manifest.get("created_at"), *(entry.started_at for entry in launches_in(manifest))]
    known = [t for t in told if isinstance(t, int | float) and finite(t) is not None]
    return known[0] if known else _first_ts(run)


def _first_ts(run: RunDirectory) -> float | None:
    try:
        head = run.disk.read(run.live("progress"), offset=0, size=_HEAD_BYTES).data
    except OSError:
        return None
    line, newline, _ = head.partition(b"\n")
    ts = (fields_of_row(line) or {}).get("ts") if newline else None
    return finite(float(ts)) if isinstance(ts, int | float) else None
