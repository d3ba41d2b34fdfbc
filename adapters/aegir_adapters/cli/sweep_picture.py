"""The grids of a sweep as text with colours, for any width. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells
from rich.color import Color
from rich.style import Style
from rich.text import Text

from aegir_stream.sweep_events import SweepCell, SweepStarted
from aegir_stream.views.sweep import SweepColumn, SweepGrids, SweepScale, columns_of, scale_of

__all__ = ["draw", "legible"]

_NUMBER_WIDTH = 7
_NARROWEST = 2
_MOST_PIECES = 8
_WIDEST = 2
"""Terminal cells of the widest character."""

_SHOWN_SKIPPED = 5
_MOST_TOKENS = 64
_LEFT_OUT = "[...]"
_PAPER, _WARM, _COLD = (246, 246, 246), (178, 24, 43), (33, 102, 172)
_INK, _LIGHT = Color.from_rgb(20, 20, 20), Color.from_rgb(255, 255, 255)
_BRIGHT = 0.55
_QUIET = Style(dim=True)
_BOLD = Style(bold=True)
_TOO_WIDE, _CUT, _AWAY = "?", ":", "-"
_DIGITS = 9
_PENDING, _NOISE, _BEST, _FAILED = "·", "~", "*", "!"


def draw(grids: SweepGrids, *, width: int, colours: bool = True) -> list[Text]:
    """Return the lines that show a sweep as far as it is.

    Args:
        grids: the sweep.
        width: cells of the terminal; a grid that is wider is folded.
        colours: whether there are any; values are digits without them.
    """
    started = grids.started
    if started is None:
        return [Text("The sweep has not begun", _QUIET)]
    scale = scale_of(grids)
    lines = [*_heading(started), _progress(grids, started), Text("")]
    for hook in started.hooks:
        lines += _Grid(grids, started, hook, scale, width=width, colours=colours).lines()
    return [*lines, *_ending(grids, scale)]


def legible(text: str) -> str:
    """Return the text of a token on one line, with nothing in it that a terminal would obey."""
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text)
    return shown or "''"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


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
        self._cell = min(_NUMBER_WIDTH, max(_NARROWEST, room // max(len(self._columns), 1)))
        self._fold = max(1, room // self._cell)

    def lines(self) -> Iterator[Text]:
        yield Text.assemble((self._hook, _BOLD), ("  layer by position", _QUIET))
        for first in range(0, len(self._columns), self._fold):
            yield from self._part(slice(first, first + self._fold))
        yield self._told()
        yield Text("")

    def _part(self, columns: slice) -> Iterator[Text]:
        yield from self._labels(self._columns[columns])
        for layer, row in zip(self._started.layers, self._rows, strict=True):
            line = Text(f"{layer:>{self._margin - 1}} ", _QUIET)
            for cell in row[columns]:
                line.append_text(self._drawn(cell))
            yield line

    def _labels(self, columns: Sequence[SweepColumn]) -> Iterator[Text]:
        numbers = [str(column.position) for column in columns]
        tokens = [legible(column.token) for column in columns]
        for labels in (numbers, tokens):
            pieces = [_pieces(label, self._cell - 1) for label in labels]
            for depth in range(max(map(len, pieces), default=0)):
                line = Text(" " * self._margin)
                for piece, column in zip(pieces, columns, strict=True):
                    style = _BOLD if column.differs and labels is tokens else _QUIET
                    line.append(_padded("".join(piece[depth : depth + 1]), self._cell), style)
                yield line

    def _drawn(self, cell: SweepCell | None) -> Text:
        if cell is None:
            return Text(_padded(_PENDING, self._cell), _QUIET)
        level = self._scale.level(cell.value)
        if level is None:
            return Text(_padded(_FAILED if cell.error else "-", self._cell), _QUIET)
        flag = self._flag(cell, level)
        shown = self._shown(cell, level).rjust(self._cell - 1) + flag
        style = _style(0.0 if cell.below_noise else level) if self._colours else Style()
        return Text(shown, style + (_BOLD if flag == _BEST else Style()))

    def _shown(self, cell: SweepCell, level: float) -> str:
        if self._cell >= _NUMBER_WIDTH:
            return _number(cell.value)
        return "" if self._colours else str(round(abs(level) * _DIGITS))

    def _flag(self, cell: SweepCell, level: float) -> str:
        best = self._best
        if best and (cell.layer, cell.position) == (best.layer, best.position):
            return _BEST
        if cell.below_noise and not cell.free:
            return _NOISE
        is_told = self._colours or self._cell >= _NUMBER_WIDTH
        return " " if is_told or level >= 0 else _AWAY

    def _told(self) -> Text:
        best = self._best
        if best is None:
            return Text("no value yet", _QUIET)
        token = next(column.token for column in self._columns if column.position == best.position)
        return Text(
            f"most at layer {best.layer}, position {best.position} ({legible(token)}): "
            f"{_number(best.value).strip()}"
        )


def _heading(started: SweepStarted) -> Iterator[Text]:
    name = f"sweep {started.sweep} of {started.model}" if started.sweep else started.model
    foil = f" against {legible(started.foil)}" if started.foil is not None else ""
    measured = f"{started.metric} of {legible(started.answer or '?')}{foil}"
    yield Text.assemble((name, _BOLD), (f"  {measured}", Style()))
    if started.clean_tokens is None:
        yield Text(f"put in  {started.source}", _QUIET)
    else:
        yield Text(f"clean   {_prompt(started.clean_tokens)}", _QUIET)
    yield Text(f"patched {_prompt(started.tokens)}", _QUIET)
    yield Text(
        f"unpatched {_number(started.corrupt).strip()}, clean {_number(started.clean).strip()}"
        f"{f', alpha {started.alpha:g}' if started.alpha != 1 else ''}",
        _QUIET,
    )
    for warning in started.warnings:
        yield Text(f"note: {legible(warning)}")
    for skipped in started.skipped[:_SHOWN_SKIPPED]:
        yield Text(f"position {skipped.position} is not swept: {legible(skipped.reason)}", _QUIET)
    more = len(started.skipped) - _SHOWN_SKIPPED
    if more > 0:
        yield Text(f"and {more} more positions", _QUIET)


def _progress(grids: SweepGrids, started: SweepStarted) -> Text:
    return Text(
        f"{len(grids.cells):,} of {started.cells:,} cells: {started.free:,} free, "
        f"{started.deduplicated:,} equal others, {started.computed:,} computed by {started.engine}"
    )


def _ending(grids: SweepGrids, scale: SweepScale) -> Iterator[Text]:
    end = "clean" if scale.measured else "furthest"
    marks = f"{_BEST} most  {_NOISE} below the noise  {_PENDING} to come"
    if grids.failed:
        marks += f"  {_FAILED} failed"
    yield Text.assemble(
        ("colour: ", _QUIET),
        (" -1 ", _style(-1.0)),
        (" 0 unpatched ", _style(0.0)),
        (f" 1 {end} ", _style(1.0)),
        (f"  {marks}", _QUIET),
    )
    ended = grids.ended
    if ended is not None:
        yield Text.assemble((ended.status, _BOLD), _figures(grids))


def _figures(grids: SweepGrids) -> str:
    ended, started = grids.ended, grids.started
    parts = []
    if ended and ended.elapsed_s is not None:
        parts.append(f" in {ended.elapsed_s:.2f} s of computing")
    if ended and ended.noise_floor is not None:
        parts.append(f", noise floor {ended.noise_floor:.1e}")
    if ended and ended.token_layers is not None and started and started.token_layers_naive:
        share = ended.token_layers / started.token_layers_naive
        parts.append(f", {share:.1%} of the work of one forward for each cell")
    if ended and ended.reason:
        parts.append(f": {legible(ended.reason)}")
    return "".join(parts)


def _prompt(tokens: tuple[str, ...]) -> str:
    """Return a prompt; of a long one the beginning and the end."""
    if len(tokens) > _MOST_TOKENS:
        tokens = (*tokens[: _MOST_TOKENS // 2], _LEFT_OUT, *tokens[-_MOST_TOKENS // 2 :])
    return " ".join(map(legible, tokens))


def _pieces(label: str, width: int) -> list[str]:
    """Return a label cut into pieces that stand below each other."""
    if width < _WIDEST:
        label = "".join(char if cell_len(char) == 1 else _TOO_WIDE for char in label)
    pieces = chop_cells(label, width)
    if len(pieces) > _MOST_PIECES:
        pieces = [*pieces[: _MOST_PIECES - 1], _CUT]
    return pieces


def _padded(text: str, width: int) -> str:
    return " " * max(0, width - 1 - cell_len(text)) + text + " "


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    shown = f"{value:.2f}".replace("-0.00", "0.00")
    return shown if len(shown) < _NUMBER_WIDTH else f"{value:.0e}"


def _style(level: float) -> Style:
    end = _WARM if level > 0 else _COLD
    share = abs(level)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_PAPER, end, strict=True))
    ink = _LIGHT if share > _BRIGHT else _INK
    return Style(bgcolor=Color.from_rgb(red, green, blue), color=ink)
