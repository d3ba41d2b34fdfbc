"""The orders that runs can be shown in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from aegir_adapters.monitor.row import Row

__all__ = ["ORDERS", "ordered"]

_DIGITS = re.compile(r"(\d+)")


def ordered(rows: Iterable[Row], by: str) -> list[Row]:
    """Return the rows in an order, a key of `ORDERS`. What is equal stands in that of the names."""
    return sorted(sorted(rows, key=_name), key=ORDERS[by])


def _activity(row: Row) -> tuple[int, float]:
    """What goes on first, what began last first: rows keep their places while they advance."""
    return row.badge.rank, _descending(row.standing.started_at)


def _name(row: Row) -> list[Any]:
    """The name, numbers in it as numbers."""
    parts = _DIGITS.split(row.name)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


def _best(row: Row) -> float:
    return _descending(row.standing.best)


def _iteration(row: Row) -> float:
    return _descending(row.standing.iteration)


def _descending(value: float | None) -> float:
    return math.inf if value is None else -value


ORDERS: dict[str, Callable[[Row], Any]] = {
    "activity": _activity,
    "name": _name,
    "best": _best,
    "iteration": _iteration,
}
"""What runs are sorted by, by its name; the one after another that the key goes through."""
