"""The grid of a sweep at one hook, as SVG: a row for each layer, a column for each position. Pure.

What a cell looks like is a class and a title, which a page can exchange while the grid fills; how
classes look is the style sheet's. `heat_maps` makes a picture that stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import itemgetter

import msgspec

from aegir_adapters.web.amounts import number
from aegir_adapters.web.plane import attribute
from aegir_stream.sweep_events import SweepCell, SweepExtreme, SweepPair, SweepStarted
from aegir_stream.views import (
    SweepColumn,
    SweepGrids,
    SweepScale,
    columns_of,
    scale_of,
)

__all__ = ["HATCH", "LEVELS", "STYLE", "CellMark", "HeatMap", "about", "heat_maps", "legend"]

LEVELS = 10
"""How many shades there are on either side of nothing."""

HATCH = (
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse"'
    ' patternTransform="rotate(45)"><rect width="6" height="6" class="z0"/>'
    '<path d="M0 0V6" class="stripe"/></pattern>'
)
"""What fills the cells below the noise floor; once in every document."""

_SHADES = "".join(
    f".{side}{step}{{fill:color-mix(in oklab,var(--{end}) {step * 100 // LEVELS}%,var(--nothing))}}"
    for side, end in (("w", "more"), ("n", "less"))
    for step in range(1, LEVELS + 1)
)
STYLE = (
    ":root{--nothing:#eef0f3;--more:#a50f15;--less:#08519c;--best:#111;--faint:#c3c9d2}"
    "@media(prefers-color-scheme:dark)"
    "{:root{--nothing:#2b323e;--more:#ff7f6e;--less:#6cb0ff;--best:#fff;--faint:#56606f}}"
    ".heat .z0{fill:var(--nothing)}"
    ".heat .p{fill:none;stroke:var(--faint);stroke-dasharray:2 2}"
    ".heat .failed{fill:none;stroke:var(--more);stroke-width:1.5}"
    ".heat .none{fill:none;stroke:var(--faint)}.stripe{stroke:var(--faint);stroke-width:2}"
    ".heat .best{fill:none;stroke:var(--best);stroke-width:2.5}"
    f"{_SHADES}"
)
"""The colours of the cells. Red is what brings the clean run back, blue leads away from it."""

_ALONE = (
    ":root{color-scheme:light dark;--ink:#1d2430;--paper:#fff}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e7eaf0;--paper:#12161d}}"
    ".paper{fill:var(--paper)}text{fill:var(--ink);font:12px system-ui,sans-serif}"
    ".hook{font-weight:bold;font-size:14px}.other{font-weight:bold}"
)

_WIDTHS = ((24, 44), (48, 26), (96, 18), (10**9, 12))
"""Up to so many columns, cells are so wide."""

_HEIGHT = 22
_GAP = 2
_LEFT = 34
_LETTER = 7.2
_LONGEST_LABEL = 14
_SLANT = 60
_MARGIN = 16
_HEADING = 22
_ANSWERS = 3
_LEGEND = 50


class CellMark(msgspec.Struct, frozen=True):
    """How a cell is shown: its class, what fills it in its place, and what is said of it."""

    kind: str
    fill: str
    title: str


class HeatMap:
    """The grid of one hook.

    Args:
        grids: the sweep; it has begun.
        started: how it began.
        number: number of the hook, which begins the ids of its cells.

    Attributes:
        hook: name of the hook.
        width: of the drawing.
        height: likewise.
    """

    def __init__(self, grids: SweepGrids, started: SweepStarted, number: int) -> None:
        self._grids = grids
        self._started = started
        self._number = number
        self.hook = started.hooks[number]
        self._scale = scale_of(grids)
        self._columns = columns_of(started)
        self._labels = [_short(column) for column in self._columns]
        self._cell = next(width for most, width in _WIDTHS if len(self._columns) <= most)
        longest = max(map(len, self._labels), default=0) * _LETTER
        self._slanted = longest > self._cell
        self._top = int(longest * 0.87 + 18) if self._slanted else 34
        self.width = (
            _LEFT + self._cell * len(self._columns) + (int(longest) if self._slanted else 0)
        )
        self.height = self._top + _HEIGHT * len(started.layers) + 4

    def marks(self) -> dict[str, CellMark]:
        """Return how every cell that is final is shown, by its id."""
        return {
            self._id(row, column): self._mark(cell, self._columns[column])
            for row, cells in enumerate(self._grids.rows(self.hook))
            for column, cell in enumerate(cells)
            if cell is not None
        }

    def best(self) -> tuple[str, int, int] | None:
        """Return the id of the frame around the best cell, and its place."""
        found = self._grids.best(self.hook)
        if found is None:
            return None
        row = self._started.layers.index(found.layer)
        column = self._started.positions.index(found.position)
        return f"h{self._number}-best", *self._place(row, column)

    def said(self) -> str:
        """Return what is to be said of the grid in a sentence."""
        best, least = self._grids.best(self.hook), None
        if not self._scale.measured:
            # Nothing is brought back: what an activation does for the answer is what it loses.
            least = self._least()
        return "; ".join(filter(None, (_said(best, self._columns), least)))

    def _least(self) -> str | None:
        """Return what is to be said of the cell at the other end."""
        values = [
            (cell.value, cell, column)
            for row in self._grids.rows(self.hook)
            for cell, column in zip(row, self._columns, strict=True)
            if cell is not None and cell.value is not None and not math.isnan(cell.value)
        ]
        if not values:
            return None
        choose = max if self._started.lower_is_better else min
        value, cell, column = choose(values, key=itemgetter(0))
        return f"least at {_where(cell.layer, column)}: {number(value)}"

    def draw(self) -> str:
        """Return the grid as an `<svg>` element."""
        return (
            f'<svg class="heat" width="{self.width}" height="{self.height}" role="img"'
            f' viewBox="0 0 {self.width} {self.height}" xmlns="http://www.w3.org/2000/svg"'
            f' aria-label="{attribute(f"{self.hook}: {self.said()}")}">{self.body()}</svg>'
        )

    def body(self) -> str:
        """Return what stands in the drawing."""
        return "".join((*self._axes(), *self._cells(), self._frame()))

    def _axes(self) -> Iterator[str]:
        for column, label in zip(self._columns, self._labels, strict=True):
            place = self._columns.index(column)
            x, y = self._place(0, place)
            kind = "token other" if column.differs else "token"
            middle = x + (self._cell - _GAP) / 2
            turn = f' transform="rotate(-{_SLANT} {middle:.1f} {y - 8})"' if self._slanted else ""
            anchor = "start" if self._slanted else "middle"
            yield (
                f'<text class="{kind}" x="{middle:.1f}" y="{y - 8}" text-anchor="{anchor}"{turn}>'
                f"{attribute(label)}<title>{attribute(_long(column))}</title></text>"
            )
        for row, layer in enumerate(self._started.layers):
            _, y = self._place(row, 0)
            yield f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{layer}</text>'

    def _cells(self) -> Iterator[str]:
        marks = self.marks()
        size = f'width="{self._cell - _GAP}" height="{_HEIGHT - _GAP}"'
        for row, layer in enumerate(self._started.layers):
            for place, column in enumerate(self._columns):
                name = self._id(row, place)
                x, y = self._place(row, place)
                waiting = CellMark("p", "", f"{_where(layer, column)}: to come")
                mark = marks.get(name, waiting)
                fill = f' fill="{mark.fill}"' if mark.fill else ""
                yield (
                    f'<rect id="{name}" class="{mark.kind}" x="{x}" y="{y}" {size}{fill}>'
                    f"<title>{attribute(mark.title)}</title></rect>"
                )

    def _frame(self) -> str:
        name, x, y = self.best() or (f"h{self._number}-best", -100, -100)
        size = f'width="{self._cell - _GAP}" height="{_HEIGHT - _GAP}"'
        return f'<rect id="{name}" class="best" x="{x}" y="{y}" {size}/>'

    def _mark(self, cell: SweepCell, column: SweepColumn) -> CellMark:
        level = self._scale.level(cell.value)
        where = _where(cell.layer, column)
        if cell.error is not None:
            return CellMark("failed", "", f"{where}: failed, {cell.error}")
        if level is None:
            return CellMark("none", "", f"{where}: no value")
        told = f"{where}: {number(cell.value)}"
        if cell.below_noise and not cell.free:
            return CellMark("noise", "url(#hatch)", f"{told}, below the noise floor")
        if cell.free:
            return CellMark(_shade(level), "", f"{told}, known without computing")
        estimated = ", estimated" * (self._started.method != "exact")
        return CellMark(_shade(level), "", f"{told}{estimated}")

    def _id(self, row: int, column: int) -> str:
        return f"h{self._number}-{row}-{column}"

    def _place(self, row: int, column: int) -> tuple[int, int]:
        return _LEFT + column * self._cell, self._top + row * _HEIGHT


def legend(scale: SweepScale) -> str:
    """Return the colours and what they mean, as an `<svg>` element."""
    low, high, framed, told = _ends(scale)
    step = 15
    shades = [*(f"n{n}" for n in range(LEVELS, 0, -1)), "z0", *(f"w{n}" for n in range(1, 11))]
    rects = "".join(
        f'<rect class="{shade}" x="{at * step}" y="2" width="{step}" height="14"/>'
        for at, shade in enumerate(shades)
    )
    middle, end = len(shades) * step // 2, len(shades) * step
    texts = (
        f'<text x="0" y="30">{low}</text>'
        f'<text x="{middle}" y="45" text-anchor="middle">unpatched {number(scale.zero)}</text>'
        f'<text x="{end}" y="30" text-anchor="end">{high}</text>'
        f'<rect fill="url(#hatch)" x="{end + 24}" y="2" width="24" height="14"/>'
        f'<text x="{end + 54}" y="14">below the noise</text>'
        f'<rect class="best" x="{end + 25}" y="22" width="22" height="12"/>'
        f'<text x="{end + 54}" y="33">{framed}</text>'
    )
    width = end + 190
    size = f'width="{width}" height="{_LEGEND}" viewBox="0 0 {width} {_LEGEND}"'
    return (
        f'<svg class="heat key-of-colours" {size} role="img" xmlns="http://www.w3.org/2000/svg"'
        f' aria-label="Colours: {told}">{rects}{texts}</svg>'
    )


def _ends(scale: SweepScale) -> tuple[str, str, str, str]:
    """Return what stands at both ends of the colours, at the frame, and what that says aloud."""
    if scale.measured:
        high = f"clean prompt {number(scale.one)}"
        return "away from it", high, "brings back the most", "blue leads away, red brings back"
    low, high = number(2 * scale.zero - scale.one), number(scale.one)
    framed = "highest value" if scale.one > scale.zero else "lowest value"
    return low, high, framed, f"blue {low}, red {high}"


def heat_maps(grids: SweepGrids) -> str:
    """Return a picture of a whole sweep that stands alone, light and dark."""
    started = grids.started
    maps = [HeatMap(grids, started, at) for at in range(len(started.hooks))] if started else []
    width = max([320 + _MARGIN, *(one.width for one in maps)]) + 2 * _MARGIN
    told = about(started) if started else "A sweep that has not begun"
    parts = [f'<text class="hook" x="{_MARGIN}" y="{_MARGIN + 14}">{attribute(told)}</text>']
    y = _MARGIN + _HEADING + 8
    for one in maps:
        heading = f"{one.hook}: {one.said()}"
        parts.append(f'<text x="{_MARGIN}" y="{y + 14}">{attribute(heading)}</text>')
        parts.append(f'<g transform="translate({_MARGIN} {y + _HEADING})">{one.body()}</g>')
        y += one.height + _HEADING + _MARGIN
    parts.append(f'<g transform="translate({_MARGIN + _LEFT} {y})">{legend(scale_of(grids))}</g>')
    height = y + _LEGEND + _MARGIN
    return (
        f'<svg class="heat" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-label="{attribute(told)}">'
        f"<style>{_ALONE}{STYLE}</style><defs>{HATCH}</defs>"
        f'<rect class="paper" width="{width}" height="{height}"/>{"".join(parts)}</svg>\n'
    )


def about(started: SweepStarted) -> str:
    """Return what a sweep is about: the model, the metric, and what is measured."""
    parts = [f"{started.model}: {started.metric} of {_measured(started)}"]
    if started.latent is not None:
        done = "moved" if started.clean_tokens else "ablated"
        parts.append(f"latent {started.latent.layer}:{started.latent.index} {done}")
    if len(started.pairs) > 1:
        parts.append(f"mean of {len(started.pairs)} pairs")
    if started.method != "exact":
        parts.append("estimated")
    return ", ".join(parts)


def _measured(started: SweepStarted) -> str:
    """Return what is measured; of several pairs what all of them measure, or the first ones."""
    told: Sequence[SweepPair | SweepStarted] = started.pairs or (started,)
    texts = list(dict.fromkeys(map(_answer, told)))
    more = f" and {len(texts) - _ANSWERS} more" if len(texts) > _ANSWERS else ""
    return f"{', '.join(texts[:_ANSWERS])}{more}"


def _answer(told: SweepPair | SweepStarted) -> str:
    foil = f" against {told.foil}" if told.foil is not None else ""
    return f"{told.answer or 'the answer'}{foil}"


def _shade(level: float) -> str:
    step = round(abs(level) * LEVELS)
    if not step:
        return "z0"
    return f"{'w' if level > 0 else 'n'}{step}"


def _short(column: SweepColumn) -> str:
    shown = column.name or column.token.strip() or repr(column.token)
    return shown if len(shown) <= _LONGEST_LABEL else f"{shown[: _LONGEST_LABEL - 1]}\u2026"


def _long(column: SweepColumn) -> str:
    clean = f", clean {column.clean_token!r}" if column.differs else ""
    if column.name is None:
        return f"position {column.position}: {column.token!r}{clean}"
    places = ", ".join(map(str, column.positions))
    return f"{column.name}: at {places} {column.token!r}{clean}"


def _where(layer: int, column: SweepColumn) -> str:
    return f"layer {layer}, {_long(column).replace(':', '', 1)}"


def _said(best: SweepExtreme | None, columns: Sequence[SweepColumn]) -> str:
    if best is None:
        return "no value yet"
    column = next(column for column in columns if column.position == best.position)
    return f"most at layer {best.layer}, {_long(column).replace(':', '', 1)}: {number(best.value)}"
