"""The runs that are watched: those named, and those found under a root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from aegir_adapters.monitor.row import Row
from aegir_stream.catalog import Catalog
from aegir_stream.clock import SystemClock
from aegir_stream.layout import RunDirectory
from aegir_stream.typing import Clock

__all__ = ["Fleet"]

_POINTS = 240


class Fleet:
    """Runs under several directories, looked at again and again.

    A directory may be a run, or a root that holds runs, as `Catalog` finds them. A run that lies
    under two of them is shown once. Runs may come and go. Never fails; not thread-safe.

    Args:
        roots: the directories.
        clock: tells how long runs have been silent and going on.

    Attributes:
        notes: what could not be read at the last look, and why.
    """

    def __init__(self, roots: Sequence[Path], *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._catalogs = {
            root: Catalog(root, clock=self._clock, points=_POINTS)
            for root in (path.resolve() for path in roots)
        }
        self._known: dict[Path, list[RunDirectory]] = {}
        self._resolved: dict[Path, Path] = {}
        self.notes: list[str] = []

    def look(self) -> list[Row]:
        """Return where each run stands now."""
        self.notes = []
        found: dict[Path, tuple[Catalog, RunDirectory]] = {}
        depths: dict[Path, int] = {}
        for root, catalog in self._catalogs.items():
            for run in self._runs(root, catalog):
                if found.setdefault(self._real(run.root), (catalog, run))[1] is run:
                    depths[run.root] = max(1, len(run.root.parts) - len(root.parts))
        names = _names(depths)
        now = self._clock.time()
        return [
            Row(name=names[run.root], standing=catalog.standing(run), now=now)
            for catalog, run in found.values()
        ]

    def _runs(self, root: Path, catalog: Catalog) -> list[RunDirectory]:
        """Return the runs under a root; those of the last time if it cannot be listed."""
        try:
            self._known[root] = [run for setup in catalog.setups() for run in setup.runs]
        except OSError as error:
            self.notes.append(f"{root} cannot be listed: {error.strerror or error}")
        return self._known.get(root, [])

    def _real(self, path: Path) -> Path:
        """Return a path without links; asked once, as it takes a system call for each part."""
        if path not in self._resolved:
            self._resolved[path] = path.resolve()
        return self._resolved[path]


def _names(depths: dict[Path, int]) -> dict[Path, str]:
    """Name each path by as many of its last parts as tell it from the others.

    Args:
        depths: paths, and how many parts to name each by at least.
    """
    while True:
        names = {path: "/".join(path.parts[-depth:]) for path, depth in depths.items()}
        times = Counter(names.values())
        if len(times) == len(names):
            return names
        depths = {path: depth + (times[names[path]] > 1) for path, depth in depths.items()}
