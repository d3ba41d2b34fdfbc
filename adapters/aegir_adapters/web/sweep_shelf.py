"""The sweeps of one run as its pages show them, read again only where something was appended."""

from __future__ import annotations

import threading

from aegir_adapters.web.sweep_shown import ShownSweep, SweepRow, shown_row, shown_sweep
from aegir_stream.layout import RunDirectory, SweepFile
from aegir_stream.sweep_reader import SweepReader
from aegir_stream.typing import Clock

__all__ = ["SweepShelf", "has_sweeps"]

_MOST_SHOWN = 200


class SweepShelf:
    """Reads the sweeps of a run. Safe to use from several threads.

    Args:
        run: the run directory; it need not exist yet.
        clock: tells how long ago things were.
    """

    def __init__(self, run: RunDirectory, *, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self._turn = threading.Lock()
        self._readers: dict[str, SweepReader] = {}

    def rows(self) -> list[SweepRow]:
        """Return the newest sweeps, newest first."""
        with self._turn:
            self._look()
            readers = list(self._readers.values())[: -_MOST_SHOWN - 1 : -1]
            return [self._row(reader) for reader in readers]

    def reader(self, sweep: str) -> SweepReader | None:
        """Return a reader of one's own of a sweep, which has read nothing; `None` if none is."""
        with self._turn:
            self._look()
            if sweep not in self._readers:
                return None
        file = next((file for file in _files(self._run) if file.sweep == sweep), None)
        return SweepReader(self._run, file, clock=self._clock) if file else None

    def shown(self, sweep: str, *, pair: int | None = None) -> ShownSweep | None:
        """Return what the page of a sweep shows; `None` if there is no such sweep, or pair of it.

        Args:
            sweep: its name.
            pair: which of its pairs of prompts; their mean if absent.
        """
        with self._turn:
            self._look()
            reader = self._readers.get(sweep)
            if reader is None or (pair is not None and not 0 <= pair < reader.grids.pairs):
                return None
            return shown_sweep(reader.grids, self._row(reader), pair=pair)

    def _look(self) -> None:
        files = {file.sweep: file for file in _files(self._run)}
        self._readers = {
            name: self._readers.get(name) or SweepReader(self._run, file, clock=self._clock)
            for name, file in files.items()
        }
        for reader in self._readers.values():
            if reader.grids.ended is None:
                reader.poll()

    def _row(self, reader: SweepReader) -> SweepRow:
        return shown_row(reader.sweep, reader.grids, reader.status(), now=self._clock.time())


def has_sweeps(run: RunDirectory) -> bool:
    """Tell whether a run has sweeps, or a model to be swept. Lists directories; never fails."""
    try:
        return bool(run.sweeps() or run.checkpoints())
    except OSError:
        return False


def _files(run: RunDirectory) -> list[SweepFile]:
    try:
        return run.sweeps()
    except OSError:
        return []  # What this user may not read is not there.
