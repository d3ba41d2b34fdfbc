"""Where the points of a chart lie on its drawing. Pure."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple, TypeAlias

from aegir_stream.trajectory import landmarks

__all__ = ["Frame", "Place", "Plane", "Point", "attribute", "kept", "lines", "unbroken", "whole"]

Point: TypeAlias = tuple[float, float | None]
"""(iteration, value); a value may be missing or not finite."""

Place: TypeAlias = tuple[float, float]
"""An iteration and a value that are finite."""

FEWEST_POINTS = 4
_WHOLE_BELOW = 1e15
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Frame(NamedTuple):
    """The size of a drawing, and how far its axes are from its edges."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def floor(self) -> int:
        """Where the lower axis lies."""
        return self.height - self.bottom

    @property
    def end(self) -> int:
        """Where the lower axis ends."""
        return self.width - self.right


class Plane:
    """Turns iterations and values into places on the drawing.

    Args:
        frame: the drawing.
        x: lowest and highest iteration; moved apart where they are one.
        y: lowest and highest value; moved apart where they are one.
    """

    def __init__(self, frame: Frame, x: Place, y: Place) -> None:
        self._frame = frame
        self._x = _widened(*x, margin=1.0)
        self._y = _widened(*y, margin=abs(y[0]) / 20 or 1.0)

    @classmethod
    def of(cls, frame: Frame, points: Sequence[Place]) -> Plane:
        """Return the plane that just holds some points."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return cls(frame, (min(xs), max(xs)), (min(ys), max(ys)))

    def x(self, value: float) -> float:
        """Return how far right an iteration lies."""
        return self._frame.left + (self._frame.end - self._frame.left) * _share(value, *self._x)

    def y(self, value: float) -> float:
        """Return how far down a value lies."""
        return self._frame.floor - (self._frame.floor - self._frame.top) * _share(value, *self._y)

    def line(self, points: Sequence[Place]) -> str:
        """Return the path from point to point."""
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)

    def steps(self, points: Sequence[Place]) -> str:
        """Return the path that stays at a value until the next point."""
        (x, y), *rest = points
        moves = (f"H{self.x(x):.1f}V{self.y(y):.1f}" for x, y in rest)
        return f"M{self.x(x):.1f} {self.y(y):.1f}" + "".join(moves)

    def series(self, points: Sequence[Sequence[Place]], *, kind: str) -> str:
        """Return unbroken stretches of points: each is a line, or a dot where it is one point."""
        paths = (f'<path class="{kind}" d="{self.line(one)}"/>' for one in points if len(one) > 1)
        return "".join(paths) + "".join(self.dot(one[0], kind) for one in points if len(one) == 1)

    def dot(self, point: Place, kind: str) -> str:
        """Return a mark on a point."""
        x, y = point
        return f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3"/>'

    def axes(self, ends: Place | None = None) -> str:
        """Return the left and the lower edge, and the numbers at their ends.

        Args:
            ends: the values that are written at the left edge; those at its ends if absent.
        """
        (left, right), (low, high) = self._x, ends or self._y
        frame = self._frame
        texts = [
            (frame.left - 6, f"{self.y(low):.0f}", "end", f"{low:.4g}"),
            (frame.left - 6, f"{self.y(high) + 10:.0f}", "end", f"{high:.4g}"),
            (frame.left, frame.height - 8, "start", whole(left)),
            (frame.end, frame.height - 8, "end", whole(right)),
        ]
        edges = f"M{frame.left} {frame.top}V{frame.floor}H{frame.end}"
        return f'<path class="axis" d="{edges}"/>' + "".join(
            f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{value}</text>'
            for x, y, anchor, value in texts
        )


def attribute(text: str) -> str:
    """Return any text as the value of an attribute; what XML cannot hold is replaced."""
    return escape(_NOT_IN_XML.sub("\ufffd", text), quote=True)


def unbroken(points: Sequence[Point]) -> tuple[list[int], list[Place]]:
    """Return the points whose values are finite, and for each the number of its stretch."""
    stretches: list[int] = []
    finite: list[Place] = []
    breaks = 0
    for x, y in points:
        if y is not None and math.isfinite(y) and math.isfinite(x):
            stretches.append(breaks)
            finite.append((float(x), float(y)))
        else:
            breaks += 1
    return stretches, finite


def kept(points: Sequence[Place], most: int) -> Sequence[int]:
    """Return the places of the points that are drawn: all, or at most `most`, at least 4."""
    if len(points) <= max(FEWEST_POINTS, most):
        return range(len(points))
    return landmarks([y for _, y in points], max(FEWEST_POINTS, most))


def lines(stretches: Sequence[int], points: Sequence[Place], most: int) -> list[list[Place]]:
    """Return the points that are drawn, by their stretches.

    Args:
        stretches: the number of each point's stretch.
        points: the points.
        most: how many are drawn at most, at least 4.
    """
    drawn: Iterator[tuple[int, Iterator[int]]]
    drawn = groupby(kept(points, most), key=lambda at: stretches[at])
    return [[points[at] for at in places] for _, places in drawn]


def whole(value: float) -> str:
    """Return an iteration as text."""
    return f"{value:,.0f}" if abs(value) < _WHOLE_BELOW else f"{value:.4g}"


def _share(value: float, low: float, high: float) -> float:
    # Halved first: the distance of two large numbers of different sign may not be finite.
    return (value / 2 - low / 2) / (high / 2 - low / 2)


def _widened(low: float, high: float, *, margin: float) -> Place:
    """Return an interval that is not empty, with its ends moved out where it is."""
    while high / 2 - low / 2 <= 0:
        low = max(low - margin, -sys.float_info.max)
        high = min(high + margin, sys.float_info.max)
        margin *= 2  # A margin may be too small to change a large number.
    return low, high
