"""The grid of a sweep as a drawing."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.heat_map import LEVELS, STYLE, HeatMap, heat_maps, legend
from aegir_stream.sweep_events import SweepCell, SweepStarted
from aegir_stream.views import SweepGrids, SweepView, scale_of

SVG = "{http://www.w3.org/2000/svg}"
STARTED = SweepStarted(
    model="checkpoint-4",
    tokens=("41", "62", "=>"),
    clean_tokens=("41", "20", "=>"),
    clean_positions=(0, 1, 2),
    hooks=("resid_pre", "mlp_out"),
    layers=(0, 3),
    positions=(0, 1, 2),
    metric="recovered",
    answer="SPACE",
    unpatched=0.0,
    restored=1.0,
    cells=12,
)
HOSTILE = '"><script>alert(1)</script>&\x00\x1b\ud7ff'


def cell(layer: int, position: int, value: float | None, **more: Any) -> SweepCell:
    """Return a cell of the first hook."""
    return SweepCell(hook="resid_pre", layer=layer, position=position, value=value, **more)


def grids(*cells: SweepCell, started: SweepStarted = STARTED) -> SweepGrids:
    """Return a sweep with some cells."""
    return SweepView().fold(SweepView().initial(), [started, *cells])


def drawn(state: SweepGrids) -> ET.Element:
    """Draw the first hook; what is no XML fails."""
    assert state.started
    return ET.fromstring(HeatMap(state, state.started, 0).draw())  # noqa: S314 - our own


def cell_of(root: ET.Element, name: str) -> tuple[str, str | None, str]:
    """Return class, fill and title of a cell."""
    (found,) = (rect for rect in root.iter(f"{SVG}rect") if rect.get("id") == name)
    return found.get("class", ""), found.get("fill"), found.findtext(f"{SVG}title", "")


def test_a_cell_is_shown_by_how_much_it_brings_back() -> None:
    """Red brings back, blue leads away, and the shade says how much; what is to come is open."""
    root = drawn(grids(cell(0, 0, 0.0), cell(0, 1, 0.72), cell(0, 2, -2.0), cell(3, 1, 1.0)))
    assert cell_of(root, "h0-0-0")[0] == "z0"
    assert cell_of(root, "h0-0-1") == ("w7", None, "layer 0, position 1 '62', clean '20': 0.72")
    assert cell_of(root, "h0-0-2")[0] == "n10"
    assert cell_of(root, "h0-1-1")[0] == "w10"
    assert cell_of(root, "h0-1-0") == ("p", None, "layer 3, position 0 '41': to come")


def test_what_is_no_effect_is_told_from_a_small_one() -> None:
    """Below the noise floor a cell is hatched; one that is known without computing is not."""
    root = drawn(
        grids(
            cell(0, 0, 1e-9, below_noise=True),
            cell(0, 1, 0.0, below_noise=True, free=True),
            cell(0, 2, None),
            cell(3, 0, None, error="a metric is not finite"),
        )
    )
    kind, fill, title = cell_of(root, "h0-0-0")
    assert (kind, fill) == ("noise", "url(#hatch)")
    assert title.endswith("1e-09, below the noise floor")
    assert cell_of(root, "h0-0-1")[:2] == ("z0", None)
    assert cell_of(root, "h0-0-1")[2].endswith("known without computing")
    assert cell_of(root, "h0-0-2")[0] == "none"
    assert cell_of(root, "h0-1-0")[0] == "failed"
    assert "not finite" in cell_of(root, "h0-1-0")[2]


def test_the_most_is_framed() -> None:
    """The frame lies on the cell, and outside of the drawing while there is none."""
    state = grids(cell(0, 1, 0.5), cell(3, 2, 0.9))
    assert state.started
    one = HeatMap(state, state.started, 0)
    name, x, y = one.best() or ("", 0, 0)
    root = ET.fromstring(one.draw())  # noqa: S314 - our own
    (under,) = (rect for rect in root.iter(f"{SVG}rect") if rect.get("id") == "h0-1-2")
    assert (under.get("x"), under.get("y")) == (str(x), str(y))
    assert one.said() == "most at layer 3, position 2 '=>': 0.9"
    assert root.get("aria-label") == f"resid_pre: {one.said()}"
    empty = HeatMap(grids(), STARTED, 1)
    assert (empty.best(), empty.said()) == (None, "no value yet")
    assert 'id="h1-best" class="best" x="-100"' in empty.draw()
    assert name == "h0-best"


def test_the_marks_are_what_is_drawn() -> None:
    """A page that exchanges classes and titles ends with what the server would draw."""
    state = grids(cell(0, 1, 0.5), cell(3, 2, -0.2, below_noise=True))
    assert state.started
    one = HeatMap(state, state.started, 0)
    root = drawn(state)
    marks = one.marks()
    assert set(marks) == {"h0-0-1", "h0-1-2"}
    for name, mark in marks.items():
        assert cell_of(root, name) == (mark.kind, mark.fill or None, mark.title)


def test_labels_mark_where_the_prompts_differ() -> None:
    """Every column has its token, in bold where the clean prompt has another."""
    root = drawn(grids())
    labels = {text.text: text.get("class") for text in root.iter(f"{SVG}text") if text.get("class")}
    assert labels == {"41": "token", "62": "token other", "=>": "token"}
    rows = [text.text for text in root.iter(f"{SVG}text") if not text.get("class")]
    assert rows == ["0", "3"]


@pytest.mark.parametrize("columns", [1, 24, 60, 200])
def test_long_labels_stay_in_the_drawing(columns: int) -> None:
    """Where they do not fit beside each other they are turned, and the drawing makes room."""
    words = tuple(f"a token of some length {at}" for at in range(columns))
    started = msgspec.structs.replace(
        STARTED, tokens=words, clean_tokens=None, positions=tuple(range(columns))
    )
    one = HeatMap(grids(started=started), started, 0)
    root = drawn(grids(started=started))
    label = next(text for text in root.iter(f"{SVG}text") if text.get("class"))
    assert (label.get("transform") or "").startswith("rotate(-60")
    assert (label.text or "").endswith("\u2026")
    right = max(float(r.get("x", 0)) + float(r.get("width", 0)) for r in root.iter(f"{SVG}rect"))
    assert right <= one.width


def test_text_of_a_model_is_text() -> None:
    """A token can neither end an attribute nor begin an element."""
    started = msgspec.structs.replace(
        STARTED, tokens=(HOSTILE,) * 3, answer=HOSTILE, model=HOSTILE, hooks=(HOSTILE,)
    )
    found = SweepCell(hook=HOSTILE, layer=0, position=1, value=0.5, error=HOSTILE)
    picture = heat_maps(grids(found, started=started))
    root = ET.fromstring(picture)  # noqa: S314 - our own
    assert not [element for element in root.iter() if "script" in element.tag]
    assert "<script" not in picture


def test_a_picture_stands_alone() -> None:
    """It has all hooks, the legend and its own style; every class it uses has a colour."""
    state = grids(cell(0, 1, 0.5), cell(0, 2, 1e-9, below_noise=True))
    root = ET.fromstring(heat_maps(state))  # noqa: S314 - our own
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert any(text.startswith("resid_pre: most at layer 0") for text in texts)
    assert "mlp_out: no value yet" in texts
    assert any("checkpoint-4: recovered of SPACE" in text for text in texts)
    assert root.find(f".//{SVG}pattern[@id='hatch']") is not None
    kinds = {rect.get("class") for rect in root.iter(f"{SVG}rect")} - {None, "noise", "paper"}
    assert all(re.search(rf"\.{kind}\b", STYLE) for kind in kinds)
    assert all(f".{side}{LEVELS}{{" in STYLE for side in "wn")
    assert ET.fromstring(heat_maps(SweepView().initial())).tag == f"{SVG}svg"  # noqa: S314


def test_the_legend_says_where_its_ends_are() -> None:
    """The clean prompt's value, or where there is none as far to both sides as any value so far."""
    assert "clean prompt 1" in legend(scale_of(grids()))
    started = msgspec.structs.replace(STARTED, unpatched=-4.0, restored=None)
    told = legend(scale_of(grids(cell(0, 0, -1.5), started=started)))
    for text in ("-6.5", "unpatched -4", "-1.5", "highest value"):
        assert f">{text}</text>" in told
    falls = msgspec.structs.replace(started, unpatched=0.0, lower_is_better=True)
    assert ">lowest value</text>" in legend(scale_of(grids(cell(0, 0, 2.0), started=falls)))


numbers = st.one_of(st.none(), st.floats())


@given(
    st.lists(st.integers(-3, 5), max_size=4, unique=True),
    st.lists(st.text(max_size=4), max_size=3),
    st.lists(st.integers(-3, 5), max_size=3),
    st.lists(st.tuples(st.integers(-3, 5), numbers), max_size=6),
    st.tuples(numbers, numbers),
)
def test_whatever_a_record_says_is_drawn(
    positions: list[int],
    tokens: list[str],
    counterparts: list[int],
    values: list[tuple[int, float | None]],
    ends: tuple[float | None, float | None],
) -> None:
    """A record that was damaged or made by hand gives a drawing, and no error."""
    started = msgspec.structs.replace(
        STARTED,
        tokens=tuple(tokens),
        clean_tokens=tuple(tokens[1:]),
        clean_positions=tuple(counterparts),
        positions=tuple(positions),
        unpatched=ends[0],
        restored=ends[1],
    )
    ET.fromstring(heat_maps(grids(*(cell(0, *one) for one in values), started=started)))  # noqa: S314
