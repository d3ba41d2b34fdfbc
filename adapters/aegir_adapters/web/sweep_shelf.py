"""The sweeps of one run as its pages show them, read again only where something was appended."""

from __future__ import annotations

import threading

import msgspec

from aegir_adapters.web.amounts import age, count, number
from aegir_adapters.web.heat_map import HeatMap, about, legend
from aegir_stream.layout import RunDirectory, SweepFile
from aegir_stream.sweep_events import SweepExtreme
from aegir_stream.sweep_reader import SweepReader, SweepStatus
from aegir_stream.typing import Clock
from aegir_stream.views.sweep import SweepGrids, columns_of, scale_of

__all__ = ["BADGES", "ShownSweep", "SweepRow", "SweepShelf", "has_sweeps"]

BADGES: dict[SweepStatus, str] = {
    "running": "active",
    "finished": "finished",
    "failed": "crashed",
    "cancelled": "stopped",
    "died": "crashed",
    "silent": "stalled",
}
"""The style of the badge that says the status."""

_NOTES: dict[SweepStatus, str] = {
    "died": "Its process is gone and left no end. What it computed is shown.",
    "silent": "Nothing was written for a long time, and its process cannot be seen from here.",
    "cancelled": "It was cancelled. What was computed is shown.",
}
_MOST_SHOWN = 200


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, as it is listed. Every number is finite, or null.

    Attributes:
        sweep: its name.
        status: whether it goes on, or how it ended.
        badge: style of the badge.
        about: model, metric, and what is measured.
        cells: how many cells are final.
        of: how many there will be.
        best: for each hook the cell that brings back the most.
        began: how long ago that was, in words.
    """

    sweep: str
    status: SweepStatus
    badge: str
    about: str
    cells: int
    of: int
    best: tuple[SweepExtreme, ...]
    began: str


class ShownSweep(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, as its page shows it.

    Attributes:
        row: as it is listed.
        facts: a term and its text each, in the order shown.
        note: what else there is to say.
        legend: what the colours mean, as an `<svg>` element.
        maps: for each hook its name, what is said of it, and its grid as an `<svg>` element.
        clean_tokens: the clean prompt, each token and whether the patched prompt has another one.
        tokens: the patched prompt, likewise.
    """

    row: SweepRow
    facts: tuple[tuple[str, str], ...]
    note: str | None
    legend: str
    maps: tuple[tuple[str, str, str], ...]
    clean_tokens: tuple[tuple[str, bool], ...]
    tokens: tuple[tuple[str, bool], ...]


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

    def shown(self, sweep: str) -> ShownSweep | None:
        """Return what the page of a sweep shows; `None` if there is no such sweep."""
        with self._turn:
            self._look()
            reader = self._readers.get(sweep)
            return _shown(reader.grids, self._row(reader)) if reader else None

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
        grids, status = reader.grids, reader.status()
        started = grids.started
        began_s = started.ts if started else None
        return SweepRow(
            sweep=reader.sweep,
            status=status,
            badge=BADGES[status],
            about=about(started) if started else "It has not begun",
            cells=len(grids.cells),
            of=started.cells if started else 0,
            best=grids.extremes(),
            began=age(self._clock.time() - began_s if began_s is not None else None),
        )


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


def _shown(grids: SweepGrids, row: SweepRow) -> ShownSweep:
    started = grids.started
    maps = [HeatMap(grids, started, at) for at in range(len(started.hooks))] if started else []
    columns = columns_of(started) if started else []
    differing = {column.position for column in columns if column.differs}
    there = dict(zip(started.clean_positions or (), columns, strict=False)) if started else {}
    return ShownSweep(
        row=row,
        facts=_facts(grids, row),
        note=_note(grids, row),
        legend=legend(scale_of(grids)) if started else "",
        maps=tuple((one.hook, one.said(), one.draw()) for one in maps),
        clean_tokens=tuple(
            (token, at in there and there[at].differs)
            for at, token in enumerate((started.clean_tokens if started else None) or ())
        ),
        tokens=tuple(
            (token, at in differing) for at, token in enumerate(started.tokens if started else ())
        ),
    )


def _facts(grids: SweepGrids, row: SweepRow) -> tuple[tuple[str, str], ...]:
    started, ended = grids.started, grids.ended
    if started is None:
        return ()
    took = ended.elapsed_s if ended else None
    return (
        ("Cells", f"{count(row.cells)} of {count(row.of)}"),
        ("Computed", count(started.computed)),
        ("Free", count(started.free)),
        ("Equal to others", count(started.deduplicated)),
        ("Unpatched", number(started.corrupt)),
        ("Clean", number(started.clean)),
        ("Noise floor", number(ended.noise_floor if ended else None)),
        ("Computing", f"{took:.3g} s" if took is not None else number(None)),
        ("Engine", started.engine or number(None)),
    )


def _note(grids: SweepGrids, row: SweepRow) -> str | None:
    notes = [_NOTES.get(row.status, "")]
    if grids.ended and grids.ended.reason:
        notes.append(f"It failed: {grids.ended.reason}")
    if grids.started:
        notes += grids.started.warnings
        notes += [
            f"Position {s.position} is not swept: {s.reason}" for s in grids.started.skipped[:5]
        ]
    if failed := grids.failed:
        notes.append(f"Cells that failed: {failed:,}.")
    return " ".join(filter(None, notes)) or None
