"""The values of one metric by step, in bounded memory. Pure."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left

from aegir_adapters.web.plane import Point

__all__ = ["Series"]

MOST_VALUES = 1_000
"""So many are kept, sixteen bytes each; three times as many as a chart shows."""


class Series:
    """Values by step; the last one that was put for a step counts.

    Of a long series the first and the last, and the lowest and the highest of each stretch of
    steps are kept; where a value was missing between two that are kept, that is kept as well.
    Every value that is kept is the one that counts, also where steps are told anew. Putting a value
    behind all others takes constant time, however long the series is.

    Steps fit 64 bits. Values may be missing or not finite.

    Args:
        most: how many values are kept, at least 32.
    """

    def __init__(self, most: int = MOST_VALUES) -> None:
        self._most = most
        self._stretch = 1
        self._steps = array("q")
        self._values = array("d")
        self._newest: tuple[int, float] | None = None

    def __len__(self) -> int:
        """Return how many values are kept; 0 only before the first was put."""
        return len(self._steps)

    def put(self, step: int, value: float | None) -> None:
        """Take the value of a step, in the place of an earlier one."""
        known = math.nan if value is None else value
        if self._steps and step <= self._steps[-1]:
            self._put_late(step, known)
        else:
            self._steps.append(step)
            self._values.append(known)
        if value is not None and (self._newest is None or step >= self._newest[0]):
            self._newest = step, value
        elif self._newest and step == self._newest[0]:
            self._newest = self._last_finite()
        if len(self._steps) > self._most:
            self._thin()

    @property
    def newest(self) -> tuple[int, float] | None:
        """The newest step with a value, and that value; `None` before there is one."""
        return self._newest

    def points(self) -> list[Point]:
        """Return steps and values in order, as close at the end as elsewhere.

        Where a value is missing it is `nan`.
        """
        return [(self._steps[at], self._values[at]) for at in self._landmarks()]

    def _put_late(self, step: int, value: float) -> None:
        at = bisect_left(self._steps, step)
        if self._steps[at] == step:
            self._values[at] = value
        else:
            self._steps.insert(at, step)
            self._values.insert(at, value)

    def _last_finite(self) -> tuple[int, float] | None:
        found = zip(reversed(self._steps), reversed(self._values), strict=True)
        return next(((step, value) for step, value in found if math.isfinite(value)), None)

    def _thin(self) -> None:
        """Keep half as many at most, so that it is long until the next time."""
        while len(places := self._landmarks()) > self._most // 2:
            # Stretches begin at multiples of their length: two of them make one of the next.
            self._stretch *= 2
        self._steps = array("q", [self._steps[at] for at in places])
        self._values = array("d", [self._values[at] for at in places])

    def _landmarks(self) -> list[int]:
        """Return the places that are kept at the length that stretches have now."""
        return self._with_breaks(self._extremes())

    def _extremes(self) -> set[int]:
        """Return the places of the first, the last, and the extremes of each stretch."""
        lowest: dict[int, int] = {}
        highest: dict[int, int] = {}
        values = self._values
        finite = [at for at, value in enumerate(values) if math.isfinite(value)]
        for at in finite:
            stretch = self._steps[at] // self._stretch
            if values[at] < values[lowest.setdefault(stretch, at)]:
                lowest[stretch] = at
            if values[at] > values[highest.setdefault(stretch, at)]:
                highest[stretch] = at
        return {*finite[:1], *finite[-1:], *lowest.values(), *highest.values()}

    def _with_breaks(self, extremes: set[int]) -> list[int]:
        """Return those places in order, with one between two where a value is missing between."""
        places: list[int] = []
        broken = False
        for at, value in enumerate(self._values):
            if at in extremes:
                places.append(at)
                broken = False
            elif not broken and not math.isfinite(value):
                places.append(at)
                broken = True
        return places
