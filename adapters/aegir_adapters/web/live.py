"""Where a run stands, as its viewer shows it: the body of `live.json`. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import msgspec

from aegir_adapters.web import svg
from aegir_adapters.web.amounts import count, date, duration, number
from aegir_stream.liveness import Status
from aegir_stream.standing import RunStanding

__all__ = ["BADGES", "Live", "LookLive", "SeenLive", "live_of"]

BADGES: Mapping[Status, str] = {
    "active": "live",
    "finished": "finished",
    "crashed": "crashed",
    "stalled": "stalled",
}
"""The word that stands for a status."""

_NOTES: Mapping[Status, str] = {
    "crashed": "Its process is gone and left no end marker.",
    "stalled": "Nothing was written for a long time. Its next line brings it back to life.",
}


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /setup/{label}/run/{idx}/live.json`. Every number is finite, or null.

    Attributes:
        active: whether the run goes on, as far as is known.
        status: `active`, `finished`, `crashed` or `stalled`.
        iteration: the highest so far.
        best: the highest score so far.
        cost: what the run has cost so far.
        calls: how often a model was called so far.
        chart: the trajectory, as an `<svg>` element.
        facts: the headline figures, a term and its text each, in the order shown.
        note: what else there is to say, in a sentence or two.
    """

    active: bool
    status: Status
    iteration: int | None
    best: float | None
    cost: float | None
    calls: float | None
    chart: str
    facts: tuple[tuple[str, str], ...]
    note: str | None

    @property
    def badge(self) -> str:
        """The word that stands for the status."""
        return BADGES[self.status]


class SeenLive(msgspec.Struct, frozen=True):
    """What the other pages of a run take over from its live viewer.

    Attributes:
        address: where that is, relative to the first page.
        live: where the run stands.
    """

    address: str
    live: Live


LookLive: TypeAlias = Callable[[], Awaitable[SeenLive | None]]
"""Returns what the live viewer of the run shows, if there is one."""


def live_of(standing: RunStanding) -> Live:
    """Return what a viewer shows."""
    return Live(
        active=standing.is_active,
        status=standing.status,
        iteration=standing.iteration,
        best=standing.best,
        cost=standing.cost,
        calls=standing.calls,
        chart=svg.trajectory(standing.curve),
        facts=_facts(standing),
        note=_note(standing),
    )


def _facts(standing: RunStanding) -> tuple[tuple[str, str], ...]:
    return (
        ("Iteration", _progress(standing)),
        ("Best score", number(standing.best)),
        ("Newest score", number(standing.score)),
        ("Cost", number(standing.cost)),
        ("Calls", count(standing.calls)),
        ("Per iteration", duration(standing.rate)),
        _time_fact(standing),
        ("Started, UTC", date(standing.started_at)),
    )


def _progress(standing: RunStanding) -> str:
    done = count(standing.iteration)
    return done if standing.total is None else f"{done} of {standing.total:,}"


def _time_fact(standing: RunStanding) -> tuple[str, str]:
    """Return how long it will take, or how long it took."""
    if standing.status != "finished":
        return "Time left", duration(standing.remaining_s if standing.is_active else None)
    start, end = standing.started_at, standing.ended_at
    took = None if start is None or end is None or end < start else end - start
    return "Took", duration(took)


def _note(standing: RunStanding) -> str | None:
    notes = [_NOTES.get(standing.status, "")]
    if standing.status == "finished" and standing.ending not in {None, "finished"}:
        notes.append(f"It ended as {standing.ending}.")
    if standing.skipped:
        lines = "line is no row" if standing.skipped == 1 else "lines are no rows"
        notes.append(f"In its feed, {standing.skipped:,} {lines}.")
    return " ".join(filter(None, notes)) or None
