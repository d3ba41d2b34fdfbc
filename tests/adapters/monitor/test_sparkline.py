from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from aegir_adapters.monitor import ASCII, BLOCKS, Glyphs, glyphs_for, sparkline

SCORES = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=100)


def test_each_score_is_a_cell_where_there_is_room() -> None:
    """The lowest score has the lowest block, the highest the highest."""
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 20) == "▁▂▃▄▅▆▇█"


def test_many_scores_are_drawn_by_stretches() -> None:
    """A cell stands for the mean of its scores."""
    assert sparkline([0, 0, 10, 10, 2, 8, 0, 0], 4) == "▁█▅▁"


@pytest.mark.parametrize(
    ("scores", "drawn"),
    [
        ([], ""),
        ([3.5], "▄"),
        ([2, 2, 2], "▄▄▄"),
        ([None, math.nan, math.inf], "   "),
        ([0, None, 1], "▁ █"),
        ([-1.7e308, 1.7e308], "▁█"),
    ],
)
def test_there_is_always_something_to_draw(scores: list[float | None], drawn: str) -> None:
    """Flat, empty, single, missing and extreme scores are drawn too."""
    assert sparkline(scores, 10) == drawn


@given(SCORES, st.integers(-1, 120), st.sampled_from([BLOCKS, ASCII]))
def test_a_sparkline_never_exceeds_its_width(
    scores: list[float | None], width: int, glyphs: Glyphs
) -> None:
    """There are as many cells as scores or as there is room for, whatever the scores are."""
    drawn = sparkline(scores, width, glyphs=glyphs)

    assert cell_len(drawn) == len(drawn) == max(0, min(width, len(scores)))
    assert set(drawn) <= {*glyphs.levels, glyphs.flat, " "}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", None, "no-such-encoding"])
def test_an_encoding_without_blocks_gets_plain_characters(encoding: str | None) -> None:
    """What a terminal cannot show is not sent to it."""
    glyphs = glyphs_for(encoding)

    sparkline([1, 2, 3], 3, glyphs=glyphs).encode("ascii")
    assert glyphs_for("utf-8") == BLOCKS


def test_names_are_made_harmless() -> None:
    """A terminal obeys what it is sent, so control characters of a name are not sent."""
    assert BLOCKS.printable("a\x1b[2Jb\n\u202e\udc80é") == "a?[2Jb???é"
    assert ASCII.printable("naïve") == "na?ve"
