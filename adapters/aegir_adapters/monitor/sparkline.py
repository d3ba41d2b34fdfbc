"""A series of scores in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegir_adapters.monitor.glyphs import BLOCKS, Glyphs

__all__ = ["sparkline"]


def sparkline(scores: Sequence[float | None], width: int, *, glyphs: Glyphs = BLOCKS) -> str:
    """Return one character for each score, or for each stretch of scores where there are many.

    A stretch is drawn at its mean. Scores that are missing or not finite are left out; a stretch
    that has no other is a space.

    Args:
        scores: in the order of the iterations.
        width: how many characters at most.
        glyphs: what to draw with.
    """
    cells = min(width, len(scores))
    if cells < 1:
        return ""
    bounds = [len(scores) * n // cells for n in range(cells + 1)]
    means = [_mean(scores[bounds[n] : bounds[n + 1]]) for n in range(cells)]
    finite = [mean for mean in means if mean is not None]
    lowest, highest = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_cell(mean, lowest, highest, glyphs) for mean in means)


def _mean(scores: Sequence[float | None]) -> float | None:
    finite = [s for s in scores if s is not None and math.isfinite(s)]
    # Divided before they are added up: a sum of large numbers may not be finite.
    return sum(s / len(finite) for s in finite) if finite else None


def _cell(mean: float | None, lowest: float, highest: float, glyphs: Glyphs) -> str:
    if mean is None:
        return " "
    # Halved, since the distance of two large numbers may not be finite either.
    span = highest / 2 - lowest / 2
    if span <= 0:
        return glyphs.flat
    share = (mean / 2 - lowest / 2) / span
    return glyphs.levels[min(len(glyphs.levels) - 1, int(share * len(glyphs.levels)))]
