"""A curve the size of a word, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aegir_stream.trajectory import landmarks

__all__ = ["sparkline"]

WIDTH, HEIGHT, MARGIN = 120, 24, 2
MOST_POINTS = 60


def sparkline(curve: Sequence[tuple[float, float]]) -> str:
    """Return an `<svg>` of a curve with finite scores; nothing where there is no line to draw."""
    scores = [score for _, score in curve]
    if len(scores) <= 1:
        return ""
    places = landmarks(scores, MOST_POINTS) if len(scores) > MOST_POINTS else range(len(scores))
    xs = _spread([curve[place][0] for place in places], MARGIN, WIDTH - MARGIN)
    ys = _spread([scores[place] for place in places], HEIGHT - MARGIN, MARGIN)
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
    return (
        f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
        f'<path d="M{path}"/></svg>'
    )


def _spread(values: Sequence[float], start: float, end: float) -> list[float]:
    """Return places between `start` and `end` for values between the lowest and the highest."""
    low, high = min(values), max(values)
    if low == high:
        return [(start + end) / 2] * len(values)
    # Halved first: the distance of two large numbers of different sign may not be finite.
    span = high / 2 - low / 2
    return [start + (end - start) * ((value / 2 - low / 2) / span) for value in values]
