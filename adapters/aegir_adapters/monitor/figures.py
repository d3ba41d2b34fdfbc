"""Numbers and durations as short text: whatever comes, a few characters."""

from __future__ import annotations

import math
from itertools import pairwise

__all__ = ["count", "duration", "figure", "rate"]

_MINUTE_S = 60
_HOUR_S = 3_600
_DAY_S = 86_400
_MANY_DAYS, _MOST_DAYS = 100, 999
_PLAIN = 1_000_000
_UNITS = "kMGTPEZY"
_SMALLEST, _LARGEST = 1e-4, 1e5
_FEW_S, _MANY_S = 60 / 1_000, 99.95


def figure(value: float) -> str:
    """Return a score or a cost: four digits that count, at most ten characters.

    The number of decimals depends on the size only, so that a column does not jitter.
    """
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size == 0:
        return "0"
    if size < _SMALLEST or size >= _LARGEST:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, min(4, 3 - math.floor(math.log10(size))))
    return f"{value:.{decimals}f}"


def count(value: float) -> str:
    """Return a whole number: all its digits below a million, three from there on."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < _PLAIN:
        return str(round(value))
    return _scaled(float(value))


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: `42s`, `3m 05s`, `2h 07m`, `12d 4h`, `115d`."""
    if seconds >= (_MOST_DAYS + 1) * _DAY_S:
        return f">{_MOST_DAYS}d"
    whole = round(max(0.0, seconds))
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m {whole % _MINUTE_S:02}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h {whole % _HOUR_S // _MINUTE_S:02}m"
    if whole >= _MANY_DAYS * _DAY_S:
        return f"{whole // _DAY_S}d"
    return f"{whole // _DAY_S}d {whole % _DAY_S // _HOUR_S}h"


def rate(seconds: float) -> str:
    """Return how fast iterations are, given the seconds that one takes.

    Slow ones as the time for each (`2.5s/it`), fast ones as how many in a minute or a second.
    """
    if seconds <= 0 or math.isinf(1 / seconds):
        return "-"
    if seconds >= _MANY_S:
        return f"{duration(seconds).replace(' ', '')}/it"
    if seconds >= 1:
        return f"{seconds:.1f}s/it"
    if seconds > _FEW_S:
        return f"{round(60 / seconds)}/min"
    return f"{count(1 / seconds)}/s"


def _scaled(value: float) -> str:
    thresholds = [10.0 ** (3 * n) for n in range(1, len(_UNITS) + 2)]
    for unit, (least, most) in zip(_UNITS, pairwise(thresholds), strict=True):
        # What rounds up to a thousand is written in the next unit.
        if abs(value) < most * 0.9995:
            return f"{value / least:.3g}{unit}"
    return figure(value)
