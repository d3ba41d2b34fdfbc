"""A scalar by step, over the range in which it is healthy, as SVG. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aegir_adapters.web.plane import Frame, Plane, Point, attribute, lines, unbroken
from aegir_stream.views.step_metrics import Band

__all__ = ["band_chart"]

WIDTH, HEIGHT = 360, 150
MOST_POINTS = 300
_FRAME = Frame(WIDTH, HEIGHT, left=66, right=10, top=8, bottom=26)
_MARGIN = 0.06
"""Of the height: an end of the band is seen, also where no value is beyond it."""

_THINNEST = 4
"""Twice as wide as the line before it."""

_LARGEST = sys.float_info.max


def band_chart(
    points: Sequence[Point],
    *,
    label: str,
    band: Band | None = None,
    alarm: bool = False,
    most: int = MOST_POINTS,
) -> str:
    """Return a chart of values, with the healthy range as an area behind them.

    Args:
        points: in the order of their steps; values that are missing or not finite are left out,
            and the line is broken there.
        label: what is said of the chart to those who do not see it; any text.
        band: the healthy range, if there is one.
        alarm: whether the newest value is marked.
        most: points drawn at most, at least 4; of a longer series the first, the last, and the
            extremes of each stretch between are kept.
    """
    stretches, finite = unbroken(points)
    if not finite:
        middle = f'x="{WIDTH // 2}" y="{HEIGHT // 2}" text-anchor="middle"'
        return _drawing(label, f'<text class="empty" {middle}>no values yet</text>')
    ends = _ends(band)
    values = [y for _, y in finite] + [end for end in ends or () if abs(end) <= _LARGEST]
    low, high = min(values), max(values)
    plane = Plane(_FRAME, (finite[0][0], finite[-1][0]), _apart(low, high) if ends else (low, high))
    body = [
        _area(plane, *ends) if ends else "",
        plane.axes((low, high) if low < high else None),
        plane.series(lines(stretches, finite, most), kind="value"),
        plane.dot(finite[-1], "newest alarm" if alarm else "newest"),
    ]
    return _drawing(label, "".join(body))


def _drawing(label: str, body: str) -> str:
    return (
        f'<svg class="scalar" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{attribute(label)}" xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _ends(band: Band | None) -> tuple[float, float] | None:
    """Return the ends of a band, infinite where it has no bound; `None` if it holds nothing."""
    low, high = band or (None, None)
    low = -float("inf") if low is None else low
    high = float("inf") if high is None else high
    # Not the other way round: a bound that is no number holds nothing.
    holds = low <= high and low <= _LARGEST and high >= -_LARGEST
    return (low, high) if band and holds else None


def _apart(low: float, high: float) -> tuple[float, float]:
    """Return an interval with a margin at both ends."""
    # In parts: the distance of two large numbers of different sign may not be finite.
    margin = high * _MARGIN - low * _MARGIN
    return max(low - margin, -_LARGEST), min(high + margin, _LARGEST)


def _area(plane: Plane, low: float, high: float) -> str:
    """Return the healthy range, which is seen behind the line also where it is a single value."""
    top = plane.y(high) if high <= _LARGEST else _FRAME.top
    bottom = plane.y(low) if low >= -_LARGEST else _FRAME.floor
    more = max(0.0, (_THINNEST - (bottom - top)) / 2)
    top, bottom = max(top - more, _FRAME.top), min(bottom + more, _FRAME.floor)
    place = f'x="{_FRAME.left}" y="{top:.1f}" width="{_FRAME.end - _FRAME.left}"'
    return f'<rect class="band" {place} height="{bottom - top:.1f}"/>'
