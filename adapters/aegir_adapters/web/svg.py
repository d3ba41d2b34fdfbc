"""Charts as SVG, made on the server: one place that draws the trajectory of a run. Pure."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TypeAlias

from aegir_stream.trajectory import landmarks

__all__ = ["Point", "trajectory"]

Point: TypeAlias = tuple[float, float | None]
"""(iteration, score); a score may be missing or not finite."""

_Place: TypeAlias = tuple[float, float]

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 28
MOST_POINTS = 1_000
FEWEST_POINTS = 4
_WHOLE_BELOW = 1e15
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def trajectory(points: Sequence[Point], *, label: str = "score", most: int = MOST_POINTS) -> str:
    """Return a chart of the scores and of the best so far.

    Args:
        points: in the order of their iterations; scores that are missing or not finite are left
            out, and the line is broken there.
        label: what the chart is called; any text.
        most: points drawn at most, at least 4; of a longer series the first, the last, and the
            extremes of each stretch between are kept.
    """
    name = escape(_NOT_IN_XML.sub("\ufffd", label), quote=True)
    stretches, finite = _unbroken(points)
    if not finite:
        middle = f'x="{WIDTH // 2}" y="{HEIGHT // 2}" text-anchor="middle"'
        return _frame(name, f'<text class="empty" {middle}>no scores yet</text>')
    scale = _Scale.of(finite)
    kept = _kept(finite, most)
    drawn = groupby(kept, key=lambda at: stretches[at])
    lines = [[finite[at] for at in places] for _, places in drawn]
    best = _running_best(finite)
    body = [
        scale.axes(),
        f'<path class="best" d="{scale.steps([best[at] for at in _kept(best, most)])}"/>',
        *(f'<path class="score" d="{scale.line(line)}"/>' for line in lines if len(line) > 1),
        *(scale.dot(line[0]) for line in lines if len(line) == 1),
        scale.dot(finite[-1], kind="newest"),
    ]
    return _frame(name, "".join(body), summary=_summary(finite))


class _Scale:
    """Turns iterations and scores into places on the drawing."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._x, self._y = x, y

    @classmethod
    def of(cls, points: Sequence[_Place]) -> _Scale:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return cls(
            _widened(min(xs), max(xs), margin=1.0),
            _widened(min(ys), max(ys), margin=abs(ys[0]) / 20 or 1.0),
        )

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (WIDTH - LEFT - RIGHT) * _share(value, low, high)

    def y(self, value: float) -> float:
        low, high = self._y
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(value, low, high)

    def line(self, points: Sequence[_Place]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)

    def steps(self, points: Sequence[_Place]) -> str:
        """Return the path that stays at a value until the next point."""
        (x, y), *rest = points
        moves = (f"H{self.x(x):.1f}V{self.y(y):.1f}" for x, y in rest)
        return f"M{self.x(x):.1f} {self.y(y):.1f}" + "".join(moves)

    def dot(self, point: _Place, *, kind: str = "score") -> str:
        x, y = point
        return f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3"/>'

    def axes(self) -> str:
        """Return the left and the lower edge, and the numbers at their ends."""
        (left, right), (low, high) = self._x, self._y
        floor = HEIGHT - BOTTOM
        texts = [
            (LEFT - 6, floor, "end", f"{low:.4g}"),
            (LEFT - 6, TOP + 10, "end", f"{high:.4g}"),
            (LEFT, HEIGHT - 8, "start", _whole(left)),
            (WIDTH - RIGHT, HEIGHT - 8, "end", _whole(right)),
        ]
        return f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>' + "".join(
            f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{value}</text>'
            for x, y, anchor, value in texts
        )


def _frame(name: str, body: str, *, summary: str = "no scores yet") -> str:
    return (
        f'<svg class="trajectory" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{name}: {summary}" xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _summary(points: Sequence[_Place]) -> str:
    x, newest = points[-1]
    best = max(y for _, y in points)
    return f"{newest:.4g} at iteration {_whole(x)}, best {best:.4g}"


def _unbroken(points: Sequence[Point]) -> tuple[list[int], list[_Place]]:
    """Return the points whose scores are finite, and for each the number of its stretch."""
    stretches: list[int] = []
    finite: list[_Place] = []
    breaks = 0
    for x, y in points:
        if y is not None and math.isfinite(y) and math.isfinite(x):
            stretches.append(breaks)
            finite.append((float(x), float(y)))
        else:
            breaks += 1
    return stretches, finite


def _kept(points: Sequence[_Place], most: int) -> Sequence[int]:
    """Return the places of the points that are drawn."""
    if len(points) <= max(FEWEST_POINTS, most):
        return range(len(points))
    return landmarks([y for _, y in points], max(FEWEST_POINTS, most))


def _running_best(points: Sequence[_Place]) -> list[_Place]:
    """Return the points at which a new best was reached, and the last place."""
    best = -math.inf
    found = []
    for x, y in points:
        if y > best:
            best = y
            found.append((x, y))
    return [*found, (points[-1][0], best)]


def _share(value: float, low: float, high: float) -> float:
    # Halved first: the distance of two large numbers of different sign may not be finite.
    return (value / 2 - low / 2) / (high / 2 - low / 2)


def _widened(low: float, high: float, *, margin: float) -> tuple[float, float]:
    """Return an interval that is not empty, with its ends moved out where it is."""
    while high / 2 - low / 2 <= 0:
        low = max(low - margin, -sys.float_info.max)
        high = min(high + margin, sys.float_info.max)
        margin *= 2  # A margin may be too small to change a large number.
    return low, high


def _whole(value: float) -> str:
    """Return an iteration as text."""
    return f"{value:,.0f}" if abs(value) < _WHOLE_BELOW else f"{value:.4g}"
