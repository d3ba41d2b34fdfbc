"""Numbers, durations and dates as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["UNKNOWN", "age", "count", "date", "duration", "number"]

UNKNOWN = "\N{EN DASH}"
"""What stands where nothing is known."""

_THOUSAND, _BILLION = 1e3, 1e9
_MINUTE_S = 60
_EXACT = 2**53
"""Above that, a float is no count of anything."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def number(value: float | None) -> str:
    """Return a number in four digits, with its thousands apart."""
    if value is None:
        return UNKNOWN
    if _THOUSAND <= abs(value) < _BILLION:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def count(value: float | None) -> str:
    """Return how many there are of something; all digits where they are whole."""
    if value is None or value != int(value) or abs(value) > _EXACT:
        return number(value)
    return f"{int(value):,}"


def duration(seconds: float | None) -> str:
    """Return a time span: to the second below a minute, else in its two largest units."""
    if seconds is None:
        return UNKNOWN
    if seconds < _MINUTE_S:
        return f"{seconds:.3g} s"
    for place, (size, unit) in enumerate(_UNITS):
        whole, rest = divmod(seconds, size)
        if whole:
            smaller, name = _UNITS[place + 1] if place + 1 < len(_UNITS) else (1, "s")
            return f"{whole:,.0f} {unit} {rest // smaller:.0f} {name}"
    raise AssertionError


def age(seconds: float | None) -> str:
    """Return how long ago something was, in one unit."""
    if seconds is None:
        return UNKNOWN
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size:,.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def date(timestamp: float | None) -> str:
    """Return a point in time, to the minute, in UTC."""
    if timestamp is None:
        return UNKNOWN
    try:
        return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        return UNKNOWN
