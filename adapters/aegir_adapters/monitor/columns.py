"""The columns of the table, and which of them there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from rich.cells import cell_len

from aegir_adapters.monitor.glyphs import Glyphs
from aegir_adapters.monitor.row import Row

__all__ = ["Column", "Placed", "gap", "place"]

_ROOMY = 100
_NAME_WIDTHS = 14, 24
_TREND_WIDTHS = 8, 16, 60


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column.

    Attributes:
        title: its heading.
        text: the cell of a run; `None` for the sparkline, which depends on the width.
        align: which side cells stand on.
        least: how wide it is at least, so that it does not jitter.
        rank: the highest goes first where room is short; those of 0 stay.
        style: as rich names it.
    """

    title: str
    text: Callable[[Row], str] | None
    align: Literal["left", "right"] = "right"
    least: int = 0
    rank: int = 0
    style: str = ""


class Placed(msgspec.Struct, frozen=True):
    """A column and how wide it is drawn."""

    column: Column
    width: int


_STATUS = Column(title="status", text=lambda row: row.badge.word, align="left", least=8)
_NAME = Column(title="run", text=lambda row: row.name, align="left", least=3)
_TREND = Column(title="scores", text=None, align="left", rank=4, style="cyan")
_LEFT = Column(title="left", text=lambda row: row.left, least=7, rank=3)
_COLUMNS = (
    _STATUS,
    _NAME,
    Column(title="iteration", text=lambda row: row.iteration, rank=1),
    _TREND,
    Column(title="newest", text=lambda row: row.score, least=6, rank=6),
    Column(title="best", text=lambda row: row.best, least=6, rank=2, style="bold"),
    Column(title="rate", text=lambda row: row.rate, least=7, rank=5),
    _LEFT,
    Column(title="cost", text=lambda row: row.cost, least=6, rank=7),
    Column(title="calls", text=lambda row: row.calls, least=5, rank=8),
    Column(title="elapsed", text=lambda row: row.elapsed, least=7, rank=9),
)


def gap(width: int) -> int:
    """Return how many cells are between two columns."""
    return 2 if width >= _ROOMY else 1


def place(rows: Sequence[Row], width: int, *, glyphs: Glyphs) -> list[Placed]:
    """Return the columns that fit beside each other, the most important ones, and their widths.

    A column that would be empty is left out. What is left goes to the names and the sparklines.

    Args:
        rows: what is shown.
        width: of the terminal, in cells.
        glyphs: what it is drawn with.
    """
    natural = {column.title: _natural(column, rows, glyphs) for column in _COLUMNS}
    columns = [column for column in _COLUMNS if not column.rank or natural[column.title]]
    widths = {column.title: natural[column.title] for column in columns}
    _shrink(widths, _NAME.title, _NAME_WIDTHS[0])
    _shrink(widths, _TREND.title, _TREND_WIDTHS[0])
    while _total(widths, width) > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
        widths = {column.title: widths[column.title] for column in columns}
    excess = _total(widths, width) - width
    # A terminal so narrow that not even the name fits shows the beginning of it.
    _shrink(widths, _NAME.title, max(1, widths[_NAME.title] - max(0, excess)))
    _widen(widths, natural, width)
    return [Placed(column, widths[column.title]) for column in columns]


def _natural(column: Column, rows: Sequence[Row], glyphs: Glyphs) -> int:
    """Return how wide a column would be, 0 if nothing stands in it."""
    text = column.text
    if text is None:
        longest = max((len(row.standing.curve) for row in rows), default=0)
        return min(max(longest, _TREND_WIDTHS[0]), _TREND_WIDTHS[-1]) if longest else 0
    widest = max((cell_len(glyphs.printable(text(row))) for row in rows), default=0)
    if column is _STATUS:
        return max(widest, column.least) + len(glyphs.bullet)
    # Runs that have a total have no time left any more when they end, and keep the column.
    timed = column is _LEFT and any(row.standing.total is not None for row in rows)
    is_used = widest or timed or not column.rank
    return max(widest, column.least, len(column.title)) if is_used else 0


def _widen(widths: dict[str, int], natural: dict[str, int], width: int) -> None:
    """Give what is left to the names and the sparklines, some to each before more to one."""
    everything = max(natural.values())
    for title, most in (
        (_NAME.title, _NAME_WIDTHS[-1]),
        (_TREND.title, _TREND_WIDTHS[1]),
        (_NAME.title, everything),
        (_TREND.title, _TREND_WIDTHS[-1]),
    ):
        if title in widths:
            spare = max(0, width - _total(widths, width))
            wanted = min(natural[title], most) - widths[title]
            widths[title] += max(0, min(spare, wanted))


def _shrink(widths: dict[str, int], title: str, most: int) -> None:
    if title in widths:
        widths[title] = min(widths[title], most)


def _total(widths: dict[str, int], width: int) -> int:
    return sum(widths.values()) + gap(width) * (len(widths) - 1)
