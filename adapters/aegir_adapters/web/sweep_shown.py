"""A sweep as it is listed, and as its page shows it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aegir_adapters.web.amounts import age, count, number
from aegir_adapters.web.heat_map import HeatMap, about, legend
from aegir_adapters.web.spelling import shown_token
from aegir_stream.sweep_events import SweepExtreme, SweepPair, SweepStarted, SweptLatent
from aegir_stream.sweep_reader import SweepStatus
from aegir_stream.views import SweepColumn, SweepGrids, baselines_of, columns_of, scale_of

__all__ = ["BADGES", "Line", "ShownSweep", "SweepRow", "shown_row", "shown_sweep"]

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
_ESTIMATED = "Estimated from one gradient, to first order: what saturates is missed."
_MOST_SKIPPED = 5
_MOST_FIRING = 5
_MOST_PAIRS = 200


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, as it is listed. Every number is finite, or null.

    Attributes:
        sweep: its name.
        status: whether it goes on, or how it ended.
        badge: style of the badge.
        about: model, metric, and what is measured.
        cells: how many cells are final.
        of: how many there will be.
        best: for each hook the cell that brings back the most, of pairs in their mean.
        most: the same in words.
        began: how long ago that was, in words.
        estimated: whether its cells are estimates.
        pairs: how many pairs of prompts it has.
    """

    sweep: str
    status: SweepStatus
    badge: str
    about: str
    cells: int
    of: int
    best: tuple[SweepExtreme, ...]
    most: tuple[str, ...]
    began: str
    estimated: bool
    pairs: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, token by token.

    Attributes:
        name: what it is called.
        tokens: each token, whether the other prompt has another one there, and what else is to be
            said of it.
    """

    name: str
    tokens: tuple[tuple[str, bool, str], ...]


class ShownSweep(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, or one pair of it, as its page shows it.

    Attributes:
        row: as it is listed.
        about: what is shown here.
        facts: a term and its text each, in the order shown.
        notes: what else there is to say.
        estimated: that the cells are estimates, and what that means; empty if they are not.
        latent: what is to be said of the latent that is patched.
        legend: what the colours mean, as an `<svg>` element.
        maps: for each hook its name, what is said of it, and its grid as an `<svg>` element.
        lines: the prompts.
        columns: what each column patches, where columns have names.
        pair: which pair is shown; `None` for their mean, or the only one.
        pairs: what each pair measures, where there are several.
        cells: how many cells are final.
        of: how many there will be.
    """

    row: SweepRow
    about: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    estimated: str
    latent: str
    legend: str
    maps: tuple[tuple[str, str, str], ...]
    lines: tuple[Line, ...]
    columns: tuple[tuple[str, str], ...]
    pair: int | None
    pairs: tuple[str, ...]
    cells: int
    of: int


def shown_row(sweep: str, grids: SweepGrids, status: SweepStatus, *, now: float) -> SweepRow:
    """Return a sweep as it is listed.

    Args:
        sweep: its name.
        grids: the sweep so far.
        status: whether it goes on, or how it ended.
        now: wall-clock seconds since the epoch.
    """
    started = grids.started
    began_s = started.ts if started else None
    best = grids.extremes()
    columns = {column.position: column for column in columns_of(started)} if started else {}
    return SweepRow(
        sweep=sweep,
        status=status,
        badge=BADGES[status],
        about=about(started) if started else "It has not begun",
        cells=len(grids.cells),
        of=started.cells if started else 0,
        best=best,
        most=tuple(
            f"{one.hook}: layer {one.layer}, {_place(columns[one.position])}" for one in best
        ),
        began=age(now - began_s if began_s is not None else None),
        estimated=started is not None and started.method != "exact",
        pairs=grids.pairs,
    )


def shown_sweep(grids: SweepGrids, row: SweepRow, *, pair: int | None = None) -> ShownSweep:
    """Return a sweep as its page shows it.

    Args:
        grids: the sweep so far.
        row: as it is listed.
        pair: which of its pairs is shown; their mean if absent.
    """
    whole = grids.started
    several = whole.pairs if whole and len(whole.pairs) > 1 else ()
    if pair is not None:
        grids = grids.pair(pair)
    started = grids.started
    maps = [HeatMap(grids, started, at) for at in range(len(started.hooks))] if started else []
    return ShownSweep(
        row=row,
        about=about(started) if started else row.about,
        facts=tuple(_facts(grids, started)) if started else (),
        notes=tuple(_notes(grids, row)),
        estimated=_ESTIMATED if row.estimated else "",
        latent=_latent(started, started.latent) if started and started.latent else "",
        legend=legend(scale_of(grids)) if started else "",
        maps=tuple((one.hook, one.said(), one.draw()) for one in maps),
        lines=tuple(_lines(started)) if started else (),
        columns=tuple(_named_columns(started)) if started else (),
        pair=pair if several else None,
        pairs=tuple(map(_measured, several[:_MOST_PAIRS])),
        cells=len(grids.cells),
        of=started.cells if started else 0,
    )


def _facts(grids: SweepGrids, started: SweepStarted) -> Iterator[tuple[str, str]]:
    ended, baselines = grids.ended, baselines_of(started)
    took = ended.elapsed_s if ended else None
    yield "Cells", f"{count(len(grids.cells))} of {count(started.cells)}"
    if started.computed + started.estimated + started.free + started.deduplicated:
        # Of a pair alone nobody counted them.
        yield "Computed", count(started.computed)
        if started.estimated:
            yield "Estimated", count(started.estimated)
        yield "Free", count(started.free)
        yield "Equal to others", count(started.deduplicated)
    yield "Unpatched", number(baselines.corrupt)
    yield "Clean", number(baselines.clean)
    yield "Noise floor", number(ended.noise_floor if ended else None)
    yield "Computing", f"{took:.3g} s" if took is not None else number(None)
    yield "Engine", started.engine or number(None)
    if started.step is not None:
        yield "Step", f"{started.step:,}"
    if started.study is not None:
        yield "Study", shown_token(started.study)


def _notes(grids: SweepGrids, row: SweepRow) -> Iterator[str]:
    started = grids.started
    if row.status in _NOTES:
        yield _NOTES[row.status]
    if grids.ended and grids.ended.reason:
        yield f"It failed: {grids.ended.reason}"
    if started:
        yield from started.warnings
        for skipped in started.skipped[:_MOST_SKIPPED]:
            of = f" of pair {skipped.pair}" if len(started.pairs) > 1 else ""
            yield f"Position {skipped.position}{of} is not swept: {skipped.reason}"
    if failed := grids.failed:
        yield f"Cells that failed: {failed:,}."


# -- prompts ---------------------------------------------------------------------------------------


def _lines(started: SweepStarted) -> Iterator[Line]:
    """Yield the prompts; of several pairs those of the first."""
    pair = started.pairs[0] if started.pairs else _only_pair(started)
    differing = {place for place, _ in _differences(pair)}
    counterparts = {place for _, place in _differences(pair)}
    of = " of the first pair" if len(started.pairs) > 1 else ""
    if pair.clean_tokens:
        clean = ((token, at in counterparts, "") for at, token in enumerate(pair.clean_tokens))
        yield Line(name=f"Clean prompt{of}", tokens=tuple(clean))
    active = started.latent.activations if started.latent else ()
    yield Line(
        name=f"Patched prompt{of}",
        tokens=tuple(
            (token, at in differing, number(active[at]) if at < len(active) and active[at] else "")
            for at, token in enumerate(pair.tokens)
        ),
    )


def _only_pair(started: SweepStarted) -> SweepPair:
    return SweepPair(
        tokens=started.tokens,
        positions=tuple((position,) for position in started.positions),
        clean_tokens=started.clean_tokens,
        clean_positions=tuple((position,) for position in started.clean_positions or ()),
    )


def _differences(pair: SweepPair) -> Iterator[tuple[int, int]]:
    """Yield the swept positions whose counterpart is another token, each with that."""
    for places, counterparts in zip(pair.positions, pair.clean_positions or (), strict=False):
        for place, counterpart in zip(places, counterparts, strict=False):
            there = 0 <= place < len(pair.tokens) and 0 <= counterpart < len(
                pair.clean_tokens or ()
            )
            if there and pair.tokens[place] != (pair.clean_tokens or ())[counterpart]:
                yield place, counterpart


def _measured(pair: SweepPair) -> str:
    foil = f" against {pair.foil}" if pair.foil is not None else ""
    return shown_token(f"{pair.answer or 'the answer'}{foil}")


def _place(column: SweepColumn) -> str:
    return column.name if column.name is not None else f"position {column.position}"


def _named_columns(started: SweepStarted) -> Iterator[tuple[str, str]]:
    for column in columns_of(started):
        if column.name is not None:
            places = ", ".join(map(str, column.positions))
            yield column.name, f"position{'s' * (len(column.positions) != 1)} {places}"


def _latent(started: SweepStarted, latent: SweptLatent) -> str:
    """Return what is done to a latent, and where it fires."""
    done = "as active as in the clean prompt" if started.clean_tokens else "ablated"
    told = f"Latent {latent.index} of layer {latent.layer}, {done}"
    if not latent.activations:
        return f"{told}."
    firing = [at for at, activation in enumerate(latent.activations) if activation]
    firing.sort(key=lambda at: -latent.activations[at])
    places = ", ".join(
        f"{number(latent.activations[at])} at position {at}" for at in firing[:_MOST_FIRING]
    )
    more = f" and {len(firing) - _MOST_FIRING:,} more" if len(firing) > _MOST_FIRING else ""
    fires = f"it fires {places}{more}" if firing else "it does not fire in the patched prompt"
    return f"{told}; {fires}. What the SAE does not explain stays as it is."
