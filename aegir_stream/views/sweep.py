"""The grids of a patch sweep, as far as they are filled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from aegir_stream.sweep_events import (
    SweepCell,
    SweepEnded,
    SweepEvent,
    SweepExtreme,
    SweepPair,
    SweepStarted,
)

__all__ = [
    "SweepBaselines",
    "SweepGrids",
    "SweepScale",
    "SweepView",
    "baselines_of",
    "scale_of",
]

Key = tuple[str, int, int, int]
"""Hook, layer, position, pair."""

_LARGEST = 1e300
_SMALLEST = 1e-12
"""Unpatched and clean value are the same if they are no further apart, relative to the former if it
is large: what lies between them would be noise of 64-bit floats."""


class SweepGrids(msgspec.Struct):
    """A sweep so far.

    Of several pairs of prompts, what is read here is the mean over all pairs, unless it says
    otherwise; a cell of the mean is there as soon as it is there in every pair. `pair` gives the
    grids of one of them.

    Attributes:
        started: how it began; `None` before its first line.
        cells: the cells that are final, of every pair, by hook, layer, position and pair.
        ended: how it ended; `None` while it has not said so.
    """

    started: SweepStarted | None = None
    cells: dict[Key, SweepCell] = {}
    ended: SweepEnded | None = None

    @property
    def pairs(self) -> int:
        """How many pairs of prompts there are, at least one."""
        return max(1, len(self.started.pairs)) if self.started else 1

    def cell(self, hook: str, layer: int, position: int) -> SweepCell | None:
        """Return a cell; `None` while it is not final."""
        found = [self.cells.get((hook, layer, position, pair)) for pair in range(self.pairs)]
        return found[0] if len(found) == 1 else _mean_cell(found)

    def rows(self, hook: str) -> list[list[SweepCell | None]]:
        """Return the grid of a hook by layer, then by position; `None` where nothing is yet."""
        if self.started is None:
            return []
        return [
            [self.cell(hook, layer, position) for position in self.started.positions]
            for layer in self.started.layers
        ]

    def pair(self, index: int) -> SweepGrids:
        """Return one pair as if it had been swept alone; the columns keep their numbers.

        Args:
            index: of `SweepStarted.pairs`; 0 where there are none.

        Raises:
            IndexError: there is no such pair.
        """
        if not 0 <= index < self.pairs:
            raise IndexError(index)
        started = self.started
        if started is None or not started.pairs:
            return self
        cells = {
            (*key[:3], 0): msgspec.structs.replace(cell, pair=0)
            for key, cell in self.cells.items()
            if key[3] == index
        }
        ended = self.ended
        alone = SweepGrids(started=_alone(started, started.pairs[index]), cells=cells)
        if ended is not None:
            alone.ended = msgspec.structs.replace(
                ended, best=alone.extremes(), cells=len(cells), failed=alone.failed
            )
        return alone

    def best(self, hook: str) -> SweepExtreme | None:
        """Return the cell of a hook that brings back the most; of equals the first in the grid.

        `None` while none has a value. A value that is no number is none.
        """
        found: SweepExtreme | None = None
        sign = -1.0 if self.started and self.started.lower_is_better else 1.0
        for cell in (cell for row in self.rows(hook) for cell in row if cell):
            if cell.value is None or math.isnan(cell.value):
                continue
            if found is None or sign * cell.value > sign * found.value:
                found = SweepExtreme(
                    hook=hook, layer=cell.layer, position=cell.position, value=cell.value
                )
        return found

    def extremes(self) -> tuple[SweepExtreme, ...]:
        """Return the best cell of each hook that has one, in the order of the hooks."""
        hooks = self.started.hooks if self.started else ()
        return tuple(best for best in map(self.best, hooks) if best)

    @property
    def failed(self) -> int:
        """How many cells failed, of all pairs."""
        return sum(cell.error is not None for cell in self.cells.values())

    @property
    def free(self) -> int:
        """How many cells followed without computing, of all pairs."""
        return sum(cell.free for cell in self.cells.values())


class SweepView:
    """Folds the lines of one sweep into its grids; the last line of a cell counts."""

    streams = ("sweeps",)

    def initial(self) -> SweepGrids:
        """Return a sweep that has not begun."""
        return SweepGrids(cells={})

    def fold(self, state: SweepGrids, events: Iterable[SweepEvent]) -> SweepGrids:
        """Take over every event."""
        for event in events:
            if isinstance(event, SweepCell):
                state.cells[event.hook, event.layer, event.position, event.pair] = event
            elif isinstance(event, SweepStarted):
                state.started = event
            else:
                state.ended = event
        return state


class SweepBaselines(msgspec.Struct, frozen=True, kw_only=True):
    """What cells are compared with; fields as in `SweepStarted`.

    Of several pairs each is the mean, and `None` where one of them has none.
    """

    unpatched: float | None
    restored: float | None
    corrupt: float | None
    clean: float | None


def baselines_of(started: SweepStarted) -> SweepBaselines:
    """Return the baselines of a sweep."""
    pairs = started.pairs or (started,)
    return SweepBaselines(
        unpatched=_mean([pair.unpatched for pair in pairs]),
        restored=_mean([pair.restored for pair in pairs]),
        corrupt=_mean([pair.corrupt for pair in pairs]),
        clean=_mean([pair.clean for pair in pairs]),
    )


class SweepScale(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the clean run a value brings back: 0 is nothing, 1 is all of it.

    Attributes:
        zero: the value at 0.
        one: the value at 1.
        measured: whether `one` is that of the clean prompt; else it is the furthest value so far.
    """

    zero: float
    one: float
    measured: bool

    def level(self, value: float | None) -> float | None:
        """Return where a value stands, within -1 and 1; `None` if it is no number."""
        if value is None or math.isnan(value):
            return None
        along = (value - self.zero) / (self.one - self.zero)
        return max(-1.0, min(1.0, along))


def scale_of(grids: SweepGrids) -> SweepScale:
    """Return the scale of a sweep.

    From the unpatched prompt's value to the clean prompt's. Where there is no clean prompt, or it
    has the same value, to the furthest value so far.
    """
    started = grids.started
    baselines = baselines_of(started) if started else None
    zero = _known(baselines.unpatched if baselines else None) or 0.0
    one = _known(baselines.restored if baselines else None)
    same = _SMALLEST * max(1.0, abs(zero))
    if one is not None and abs(one - zero) > same:
        return SweepScale(zero=zero, one=one, measured=True)
    rows = (row for hook in (started.hooks if started else ()) for row in grids.rows(hook))
    values = (_known(cell.value) for row in rows for cell in row if cell)
    furthest = max((abs(value - zero) for value in values if value is not None), default=0.0)
    width = furthest if furthest > same else max(1.0, abs(zero))
    falls = started is not None and started.lower_is_better
    return SweepScale(zero=zero, one=zero - width if falls else zero + width, measured=False)


def _mean_cell(found: Sequence[SweepCell | None]) -> SweepCell | None:
    """Return the mean of a cell over its pairs; `None` while one of them is to come."""
    cells = [cell for cell in found if cell is not None]
    if len(cells) < len(found):
        return None
    errors = (f"Pair {cell.pair}: {cell.error}" for cell in cells if cell.error is not None)
    return SweepCell(
        hook=cells[0].hook,
        layer=cells[0].layer,
        position=cells[0].position,
        value=_mean([cell.value for cell in cells]),
        below_noise=all(cell.below_noise for cell in cells),
        free=all(cell.free for cell in cells),
        error=next(errors, None),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return a mean, which does not depend on what was read first; `None` if one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    try:
        return math.fsum(known) / len(known)
    except (OverflowError, ValueError):
        # Larger than a float can be, or infinite to both sides.
        return sum(known) / len(known)


def _alone(started: SweepStarted, pair: SweepPair) -> SweepStarted:
    latent = started.latent
    if latent is not None:
        latent = msgspec.structs.replace(
            latent, activations=pair.activations, clean_activations=pair.clean_activations
        )
    return msgspec.structs.replace(
        started,
        tokens=pair.tokens,
        clean_tokens=pair.clean_tokens,
        clean_positions=None,
        answer=pair.answer,
        foil=pair.foil,
        unpatched=pair.unpatched,
        restored=pair.restored,
        corrupt=pair.corrupt,
        clean=pair.clean,
        latent=latent,
        pairs=(pair,),
        # What was counted was counted for all of them together.
        cells=len(started.hooks) * len(started.layers) * len(started.positions),
        free=0,
        deduplicated=0,
        computed=0,
        estimated=0,
    )


def _known(value: float | None) -> float | None:
    """Return a value within what can be drawn; `None` if it is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return max(-_LARGEST, min(_LARGEST, value))
