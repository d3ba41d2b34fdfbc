"""Charts as SVG, made on the server: one place that draws the trajectory of a run. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegir_adapters.web.plane import (
    Frame,
    Place,
    Plane,
    Point,
    attribute,
    kept,
    lines,
    unbroken,
    whole,
)

__all__ = ["Point", "trajectory"]

WIDTH, HEIGHT = 720, 220
MOST_POINTS = 1_000
_FRAME = Frame(WIDTH, HEIGHT, left=64, right=12, top=12, bottom=28)


def trajectory(points: Sequence[Point], *, label: str = "score", most: int = MOST_POINTS) -> str:
    """Return a chart of the scores and of the best so far.

    Args:
        points: in the order of their iterations; scores that are missing or not finite are left
            out, and the line is broken there.
        label: what the chart is called; any text.
        most: points drawn at most, at least 4; of a longer series the first, the last, and the
            extremes of each stretch between are kept.
    """
    stretches, finite = unbroken(points)
    if not finite:
        middle = f'x="{WIDTH // 2}" y="{HEIGHT // 2}" text-anchor="middle"'
        return _drawing(label, f'<text class="empty" {middle}>no scores yet</text>')
    plane = Plane.of(_FRAME, finite)
    best = _running_best(finite)
    body = [
        plane.axes(),
        f'<path class="best" d="{plane.steps([best[at] for at in kept(best, most)])}"/>',
        plane.series(lines(stretches, finite, most), kind="score"),
        plane.dot(finite[-1], "newest"),
    ]
    return _drawing(label, "".join(body), summary=_summary(finite))


def _drawing(label: str, body: str, *, summary: str = "no scores yet") -> str:
    return (
        f'<svg class="trajectory" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{attribute(label)}: {summary}" xmlns="http://www.w3.org/2000/svg">'
        f"{body}</svg>"
    )


def _summary(points: Sequence[Place]) -> str:
    x, newest = points[-1]
    best = max(y for _, y in points)
    return f"{newest:.4g} at iteration {whole(x)}, best {best:.4g}"


def _running_best(points: Sequence[Place]) -> list[Place]:
    """Return the points at which a new best was reached, and the last place."""
    best = -math.inf
    found = []
    for x, y in points:
        if y > best:
            best = y
            found.append((x, y))
    return [*found, (points[-1][0], best)]
