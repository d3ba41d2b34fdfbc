"""The grids of a sweep as text with colours, for any width. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells
from rich.color import Color
from rich.style import Style
from rich.text import Text

from aegir_adapters.cli.sweep_heading import (
    BOLD,
    QUIET,
    figures,
    heading,
    legible,
    number,
    progress,
)
from aegir_stream.sweep_events import SweepCell, SweepExtreme, SweepStarted
from aegir_stream.views import (
    DISAGREEING,
    SweepColumn,
    SweepGrids,
    SweepScale,
    columns_of,
    scale_of,
)

__all__ = ["draw"]

_NUMBER_WIDTH = 7
_FEWEST_DECIMALS, _MOST_DECIMALS = 2, 4
_DECIMALS = {_FEWEST_DECIMALS: 0.5, 3: 0.05}
"""From which width of the scale on so many are enough."""

_NARROWEST = 2
_WIDEST_NAME = 16
_MOST_PIECES = 8
_WIDEST = 2
"""Terminal cells of the widest character."""

_PAPER, _WARM, _COLD = (246, 246, 246), (178, 24, 43), (33, 102, 172)
_INK, _LIGHT = Color.from_rgb(20, 20, 20), Color.from_rgb(255, 255, 255)
_BRIGHT = 0.55
_TOO_WIDE, _CUT, _AWAY = "?", ":", "-"
_DIGITS = 9
_PENDING, _NOISE, _BEST, _FAILED = "·", "~", "*", "!"


def draw(
    grids: SweepGrids, *, width: int, colours: bool = True, pair: int | None = None
) -> list[Text]:
    """Return the lines that show a sweep as far as it is.

    Args:
        grids: the sweep.
        width: cells of the terminal; a grid that is wider is folded.
        colours: whether there are any; values are digits without them.
        pair: of several pairs the one to show; their mean if absent.

    Raises:
        IndexError: there is no such pair.
    """
    if pair is not None:
        grids = grids.pair(pair)
    started = grids.started
    if started is None:
        return [Text("The sweep has not begun", QUIET)]
    scale = scale_of(grids)
    told = heading(started, pair=pair, decimals=_decimals(scale))
    lines = [*told, progress(grids, started), Text("")]
    for hook in started.hooks:
        lines += _Grid(grids, started, hook, scale, width=width, colours=colours).lines()
    return [*lines, _legend(grids, scale), *figures(grids)]


class _Grid:
    """One hook: labels above, a row for each layer, the best cell below."""

    def __init__(
        self,
        grids: SweepGrids,
        started: SweepStarted,
        hook: str,
        scale: SweepScale,
        *,
        width: int,
        colours: bool,
    ) -> None:
        self._started = started
        self._hook = hook
        self._scale = scale
        self._colours = colours
        self._columns = columns_of(started)
        self._rows = grids.rows(hook)
        self._best = grids.best(hook)
        self._margin = max((len(str(layer)) for layer in started.layers), default=1) + 2
        room = max(width - self._margin, _NARROWEST)
        self._decimals = _decimals(scale)
        self._widest = _NUMBER_WIDTH + self._decimals - _FEWEST_DECIMALS
        widths = (min(_WIDEST_NAME, _length(one) + 1) for one in self._columns)
        wanted = max([self._widest, *widths])
        self._cell = min(wanted, max(_NARROWEST, room // max(len(self._columns), 1)))
        self._fold = max(1, room // self._cell)

    def lines(self) -> Iterator[Text]:
        yield Text.assemble((self._hook, BOLD), (self._told_of(), QUIET))
        for first in range(0, len(self._columns), self._fold):
            yield from self._part(slice(first, first + self._fold))
        yield self._told()
        yield Text("")

    def _told_of(self) -> str:
        """Return what rows, columns and values are."""
        columns = "group" if self._started.columns else "position"
        estimated = ", estimated" if self._started.method != "exact" else ""
        pairs = len(self._started.pairs)
        return f"  layer by {columns}{estimated}{f', mean of {pairs} pairs' if pairs > 1 else ''}"

    def _part(self, columns: slice) -> Iterator[Text]:
        yield from self._labels(self._columns[columns])
        for layer, row in zip(self._started.layers, self._rows, strict=True):
            line = Text.assemble((f"{layer:>{self._margin - 1}} ", QUIET))
            for cell in row[columns]:
                line.append_text(self._drawn(cell))
            yield line

    def _labels(self, columns: Sequence[SweepColumn]) -> Iterator[Text]:
        names = [[_name(column)] for column in columns]
        tokens = [_words(column) for column in columns]
        for labels in (names, tokens):
            pieces = [_pieces(label, self._cell - 1) for label in labels]
            for depth in range(max(map(len, pieces), default=0)):
                line = Text(" " * self._margin)
                for piece, column in zip(pieces, columns, strict=True):
                    style = BOLD if column.differs and labels is tokens else QUIET
                    line.append(_padded("".join(piece[depth : depth + 1]), self._cell), style)
                yield line

    def _drawn(self, cell: SweepCell | None) -> Text:
        if cell is None:
            return Text(_padded(_PENDING, self._cell), QUIET)
        level = self._scale.level(cell.value)
        if level is None:
            return Text(_padded(_FAILED if cell.error else "-", self._cell), QUIET)
        flag = self._flag(cell, level)
        shown = self._shown(cell, level).rjust(self._cell - 1) + flag
        style = _style(0.0 if cell.below_noise else level) if self._colours else Style()
        return Text(shown, style + (BOLD if flag == _BEST else Style()))

    def _shown(self, cell: SweepCell, level: float) -> str:
        if self._cell >= self._widest:
            return self._number(cell.value)
        return "" if self._colours else str(round(abs(level) * _DIGITS))

    def _flag(self, cell: SweepCell, level: float) -> str:
        best = self._best
        if best and (cell.layer, cell.position) == (best.layer, best.position):
            return _BEST
        if cell.below_noise and not cell.free:
            return _NOISE
        is_told = self._colours or self._cell >= self._widest
        return " " if is_told or level >= 0 else _AWAY

    def _told(self) -> Text:
        best = self._best
        if best is None:
            return Text("no value yet", QUIET)
        told = f"most at {self._place(best)}"
        # Where nothing is brought back, what is lost is as much of an answer.
        least = None if self._scale.measured else self._least()
        return Text(told if least is None else f"{told}, least at {self._place(least)}")

    def _least(self) -> SweepCell | None:
        cells = [cell for row in self._rows for cell in row if cell and _is_number(cell)]
        sign = 1.0 if self._started.lower_is_better else -1.0
        return max(cells, key=lambda cell: sign * (cell.value or 0.0), default=None)

    def _place(self, cell: SweepExtreme | SweepCell) -> str:
        column = next(one for one in self._columns if one.position == cell.position)
        place = _name(column) if column.name is not None else f"position {_name(column)}"
        token = "" if column.token == DISAGREEING else f" ({legible(column.token)})"
        return f"layer {cell.layer}, {place}{token}: {self._number(cell.value)}"

    def _number(self, value: float | None) -> str:
        return number(value, decimals=self._decimals)


def _name(column: SweepColumn) -> str:
    """Return the name of a group, or the position."""
    if column.name is not None:
        return legible(column.name)
    return str(column.positions[0] if column.positions else column.position)


def _length(column: SweepColumn) -> int:
    """Return the terminal cells of a group's name; nothing of a position, whose token is folded."""
    return 0 if column.name is None else cell_len(legible(column.name))


def _is_number(cell: SweepCell) -> bool:
    return cell.value is not None and not math.isnan(cell.value)


def _decimals(scale: SweepScale) -> int:
    """Return how many decimals tell values of a scale apart."""
    width = abs(scale.one - scale.zero)
    return next((n for n, least in _DECIMALS.items() if width >= least), _MOST_DECIMALS)


def _legend(grids: SweepGrids, scale: SweepScale) -> Text:
    end = "clean" if scale.measured else "furthest"
    marks = f"{_BEST} most  {_NOISE} below the noise  {_PENDING} to come"
    if grids.failed:
        marks += f"  {_FAILED} failed"
    return Text.assemble(
        ("colour: ", QUIET),
        (" -1 ", _style(-1.0)),
        (" 0 unpatched ", _style(0.0)),
        (f" 1 {end} ", _style(1.0)),
        (f"  {marks}", QUIET),
    )


def _words(column: SweepColumn) -> list[str]:
    """Return the token of a position, or the words of a group."""
    words = [column.token] if column.name is None else column.token.split() or [column.token]
    return list(map(legible, words))


def _pieces(words: Sequence[str], width: int) -> list[str]:
    """Return a label cut into pieces that stand below each other, each word anew."""
    if width < _WIDEST:
        words = [
            "".join(char if cell_len(char) == 1 else _TOO_WIDE for char in word) for word in words
        ]
    pieces = [piece for word in words for piece in chop_cells(word, width)]
    if len(pieces) > _MOST_PIECES:
        pieces = [*pieces[: _MOST_PIECES - 1], _CUT]
    return pieces


def _padded(text: str, width: int) -> str:
    return " " * max(0, width - 1 - cell_len(text)) + text + " "


def _style(level: float) -> Style:
    end = _WARM if level > 0 else _COLD
    share = abs(level)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_PAPER, end, strict=True))
    ink = _LIGHT if share > _BRIGHT else _INK
    return Style(bgcolor=Color.from_rgb(red, green, blue), color=ink)
