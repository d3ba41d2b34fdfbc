"""One run as a line of plain text, for what is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aegir_adapters.monitor.glyphs import BLOCKS, Glyphs
from aegir_adapters.monitor.row import Row

__all__ = ["report", "report_line"]

_BADGE_WIDTH = 8


def report(rows: Sequence[Row], *, glyphs: Glyphs = BLOCKS) -> list[str]:
    """Return a line for each run, the names under each other."""
    width = max((len(row.name) for row in rows), default=0)
    return [report_line(row, glyphs=glyphs, name_width=width) for row in rows]


def report_line(row: Row, *, glyphs: Glyphs = BLOCKS, name_width: int = 0) -> str:
    """Return a run as one line: badge, name, and what is known about it, each with its word."""
    name = glyphs.printable(row.name).ljust(name_width)
    head = f"{row.badge.word:<{_BADGE_WIDTH}}  {name}"
    return "  ".join([head, *_facts(row)])


def _facts(row: Row) -> Iterable[str]:
    yield f"iteration {row.iteration}" if row.iteration else "no iteration yet"
    named = {"score": row.score, "best": row.best, "rate": row.rate}
    yield from (f"{word} {text}" for word, text in named.items() if text)
    if row.left:
        yield f"{row.left} left"
    spent = {"cost": row.cost, "calls": row.calls, "elapsed": row.elapsed}
    yield from (f"{word} {text}" for word, text in spent.items() if text)
