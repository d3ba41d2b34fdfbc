"""What the terminal shows: a heading, a row for each run, the keys."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from aegir_adapters.monitor.columns import Placed, gap, place
from aegir_adapters.monitor.glyphs import BLOCKS, Glyphs
from aegir_adapters.monitor.row import Row
from aegir_adapters.monitor.sparkline import sparkline

__all__ = ["Frame", "draw"]

_AROUND = 4
"""Lines beside those of the runs: heading, titles, one empty, the keys."""

_SORTED = {"activity": "status", "name": "run"}
"""Titles of the columns that orders are shown at, where they are called otherwise."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What to draw.

    Attributes:
        rows: the runs, in their order.
        order: name of that order.
        notes: what else to say, such as what could not be read.
        has_keys: whether keys do anything.
    """

    rows: Sequence[Row]
    order: str
    notes: Sequence[str] = ()
    has_keys: bool = True


def draw(
    frame: Frame, *, width: int, height: int | None = None, glyphs: Glyphs = BLOCKS
) -> list[Text]:
    """Return the lines of a frame, none wider than the terminal.

    Args:
        frame: what to draw.
        width: of the terminal, in cells.
        height: of the terminal, in lines; what does not fit is counted. Unbounded if absent, and
            then the keys are left out.
        glyphs: what to draw with.
    """
    room = len(frame.rows) if height is None else max(1, height - _AROUND - len(frame.notes))
    if len(frame.rows) > room:
        room = max(1, room - 1)
    shown = frame.rows[:room]
    placed = place(shown, width, glyphs=glyphs)
    between = " " * gap(width)
    lines = [_heading(frame.rows)]
    if shown:
        lines.append(_titles(placed, between, frame.order))
        lines += [_line(row, placed, between, glyphs) for row in shown]
    lines += [_more(len(frame.rows) - len(shown))] if len(shown) < len(frame.rows) else []
    lines += [Text(glyphs.printable(note), style="yellow") for note in frame.notes]
    lines += [Text(), _keys(frame)] if height is not None else []
    return [_cropped(line, width) for line in lines[:height]]


def _heading(rows: Sequence[Row]) -> Text:
    """Count the runs by their badges."""
    if not rows:
        return Text("no run yet", style="bold")
    line = Text("1 run" if len(rows) == 1 else f"{len(rows)} runs", style="bold")
    badges = sorted({row.badge for row in rows}, key=lambda badge: (badge.rank, badge.word))
    for number, badge in enumerate(badges):
        line.append(": " if number == 0 else ", ", style="not bold")
        count = sum(row.badge == badge for row in rows)
        line.append(f"{count} {badge.word}", style=f"not bold {badge.style}")
    if not any(row.standing.status in {"active", "stalled"} for row in rows):
        over = "the run has ended" if len(rows) == 1 else "all runs have ended"
        line.append(f" - {over}", style="bold")
    return line


def _titles(placed: Sequence[Placed], between: str, order: str) -> Text:
    """Name the columns, and underline the one that the rows are sorted by."""
    line = Text()
    for number, each in enumerate(placed):
        title = each.column.title
        cell = Text(_aligned(title, each, ""), style="dim")
        if title == _SORTED.get(order, order):
            cell.highlight_words([title], style="underline not dim")
        line.append(between if number else "").append_text(cell)
    return line


def _line(row: Row, placed: Sequence[Placed], between: str, glyphs: Glyphs) -> Text:
    line = Text()
    for number, each in enumerate(placed):
        line.append(between if number else "")
        column = each.column
        if column.text is None:
            line.append(_trend(row, each, glyphs), style=column.style)
        elif number == 0:
            line.append(_aligned(glyphs.bullet + row.badge.word, each, ""), style=row.badge.style)
        else:
            text = glyphs.printable(column.text(row)) or "-"
            style = "dim" if text == "-" else column.style
            line.append(_aligned(text, each, glyphs.ellipsis), style=style)
    return line


def _trend(row: Row, placed: Placed, glyphs: Glyphs) -> str:
    return set_cell_size(sparkline(row.scores, placed.width, glyphs=glyphs), placed.width)


def _more(count: int) -> Text:
    return Text("and 1 more run" if count == 1 else f"and {count} more runs", style="dim")


def _keys(frame: Frame) -> Text:
    keys = f"q quit   s sort: {frame.order}" if frame.has_keys else "Ctrl-C quits"
    return Text(keys, style="dim")


def _aligned(text: str, placed: Placed, ellipsis: str) -> str:
    """Return text in the width of a column; of what is longer, both ends."""
    width, length = placed.width, cell_len(text)
    if length > width:
        return _both_ends(text, width, ellipsis)
    blank = " " * (width - length)
    return text + blank if placed.column.align == "left" else blank + text


def _both_ends(text: str, width: int, ellipsis: str) -> str:
    """Shorten text in its middle: runs are told apart by their setup and by their number."""
    ahead = max(0, width - len(ellipsis)) // 2
    behind = max(0, width - len(ellipsis) - ahead)
    end = text
    while cell_len(end) > behind:
        end = end[1:]
    return set_cell_size(set_cell_size(text, ahead) + ellipsis + end, width)


def _cropped(line: Text, width: int) -> Text:
    if line.cell_len > width:
        line.truncate(width, overflow="crop")
    line.no_wrap = True
    return line
