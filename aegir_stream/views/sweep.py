"""The grids of a patch sweep, as far as they are filled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from aegir_stream.sweep_events import SweepCell, SweepEnded, SweepEvent, SweepExtreme, SweepStarted

__all__ = ["SweepColumn", "SweepGrids", "SweepScale", "SweepView", "columns_of", "scale_of"]

T = TypeVar("T")

Key = tuple[str, int, int]
"""Hook, layer, position."""

_LARGEST = 1e300
_SMALLEST = 1e-12
"""Unpatched and clean value are the same if they are no further apart, relative to the former if it
is large: what lies between them would be noise of 64-bit floats."""


class SweepGrids(msgspec.Struct):
    """A sweep so far.

    Attributes:
        started: how it began; `None` before its first line.
        cells: the cells that are final, by hook, layer and position.
        ended: how it ended; `None` while it has not said so.
    """

    started: SweepStarted | None = None
    cells: dict[Key, SweepCell] = {}
    ended: SweepEnded | None = None

    def rows(self, hook: str) -> list[list[SweepCell | None]]:
        """Return the grid of a hook by layer, then by position; `None` where nothing is yet."""
        if self.started is None:
            return []
        return [
            [self.cells.get((hook, layer, position)) for position in self.started.positions]
            for layer in self.started.layers
        ]

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
        """How many cells failed."""
        return sum(cell.error is not None for cell in self.cells.values())

    @property
    def free(self) -> int:
        """How many cells followed without computing."""
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
                state.cells[event.hook, event.layer, event.position] = event
            elif isinstance(event, SweepStarted):
                state.started = event
            else:
                state.ended = event
        return state


class SweepColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of every grid.

    Attributes:
        position: patched position.
        token: the text there; empty if the sweep does not say.
        clean_token: the text at its counterpart in the clean prompt; `None` without one.
    """

    position: int
    token: str
    clean_token: str | None = None

    @property
    def differs(self) -> bool:
        """Whether the clean prompt has another token there."""
        return self.clean_token is not None and self.clean_token != self.token


def columns_of(started: SweepStarted) -> list[SweepColumn]:
    """Return the columns of a sweep, whatever its first line says of them."""
    counterparts = started.clean_positions or ()
    return [
        SweepColumn(
            position=position,
            token=_at(started.tokens, position) or "",
            clean_token=_at(started.clean_tokens or (), _at(counterparts, column)),
        )
        for column, position in enumerate(started.positions)
    ]


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
    zero = _known(started.unpatched if started else None) or 0.0
    one = _known(started.restored if started else None)
    same = _SMALLEST * max(1.0, abs(zero))
    if one is not None and abs(one - zero) > same:
        return SweepScale(zero=zero, one=one, measured=True)
    values = (_known(cell.value) for cell in grids.cells.values())
    furthest = max((abs(value - zero) for value in values if value is not None), default=0.0)
    width = furthest if furthest > same else max(1.0, abs(zero))
    falls = started is not None and started.lower_is_better
    return SweepScale(zero=zero, one=zero - width if falls else zero + width, measured=False)


def _at(things: Sequence[T], place: int | None) -> T | None:
    return things[place] if place is not None and 0 <= place < len(things) else None


def _known(value: float | None) -> float | None:
    """Return a value within what can be drawn; `None` if it is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return max(-_LARGEST, min(_LARGEST, value))
