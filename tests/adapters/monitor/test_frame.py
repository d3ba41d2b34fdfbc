from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from adapters.monitor.rows import ROWS, full, row
from aegir_adapters.monitor import ASCII, BLOCKS, ORDERS, Glyphs, Row, ordered
from aegir_adapters.monitor.frame import Frame, draw
from aegir_stream.liveness import Status


def lines(
    *rows: Row, width: int = 200, height: int | None = None, glyphs: Glyphs = BLOCKS
) -> list[str]:
    """Draw rows and return the text."""
    frame = Frame(rows=rows, order="activity")
    return [line.plain for line in draw(frame, width=width, height=height, glyphs=glyphs)]


def titles(width: int, *rows: Row) -> list[str]:
    """Return the titles of the columns that are drawn."""
    return lines(*rows, width=width)[1].split()


def test_a_wide_terminal_shows_everything() -> None:
    """At 200 columns every column is there, and the sparkline has its full width."""
    heading, title, line = lines(full())

    assert heading == "1 run: 1 live"
    assert title.split() == [
        *("status", "run", "iteration", "scores", "newest", "best", "rate", "left"),
        *("cost", "calls", "elapsed"),
    ]
    assert line.split()[:4] == ["●", "live", "evolve/run-1", "120/400"]
    assert line[line.index("▁") :].index(" ") == 60
    assert line.split()[5:] == (
        ["0.5000", "0.7500", "2.5s/it", "11m", "40s", "1.250", "360", "10m", "00s"]
    )


@pytest.mark.parametrize(
    ("width", "kept"),
    [
        (80, "status run iteration scores newest best rate left"),
        (60, "status run iteration scores best left"),
        (40, "status run iteration"),
        (12, "status"),
    ],
)
def test_columns_go_by_their_importance(width: int, kept: str) -> None:
    """Where room is short, the less important columns are left out, and the rest is whole."""
    assert titles(width, full("evolve/run-number-1"))[: len(kept.split())] == kept.split()


def test_columns_without_content_are_left_out() -> None:
    """A run that has only checkpoints needs no room for scores."""
    assert titles(200, row(iteration=50)) == ["status", "run", "iteration"]


def test_the_end_of_a_run_moves_no_column() -> None:
    """The time left keeps its column when none is left any more."""
    before, after = full(), full(status="finished", remaining_s=None, ended_at=1_000.0)

    assert titles(80, before) == titles(80, after)


def test_long_names_keep_both_ends() -> None:
    """Runs are told apart by their setup and by their number."""
    line = lines(full("prompt-search/2026-11-23-with-everything-on-run-17"), width=80)[2]

    assert "prompt" in line
    assert "run-17" in line
    assert "…" in line


def test_more_runs_than_lines_are_counted() -> None:
    """What does not fit on the screen is said to be there."""
    shown = lines(*[row(f"run-{n}") for n in range(50)], height=12)

    assert len(shown) <= 12
    assert "and 43 more runs" in shown
    assert shown[-1].startswith("q quit")


def test_the_end_of_all_runs_is_said() -> None:
    """The display does not end by itself, so it says when nothing more will come."""
    ended, crashed = row("a", status="finished"), row("b", status="crashed")

    assert lines(ended, crashed)[0] == "2 runs: 1 crashed, 1 finished - all runs have ended"
    assert lines(ended)[0] == "1 run: 1 finished - the run has ended"
    assert lines(ended, row("c", status="stalled"))[0] == "2 runs: 1 stalled, 1 finished"
    assert lines() == ["no run yet"]


@pytest.mark.parametrize(
    ("status", "ending", "word"),
    [
        ("active", None, "live"),
        ("stalled", None, "stalled"),
        ("crashed", None, "crashed"),
        ("finished", "finished", "finished"),
        ("finished", "failed", "failed"),
        ("finished", "stopped", "stopped"),
        ("finished", "\x1b[2J", "finished"),
    ],
)
def test_a_badge_is_a_word(status: Status, ending: str | None, word: str) -> None:
    """Whether a run goes on, and how it ended, can be read without colours."""
    assert lines(row(status=status, ending=ending))[2].split()[:2] == ["●", word]


def test_plain_characters_suffice() -> None:
    """A terminal without block characters is sent none."""
    frame = Frame(rows=[full("naïve/" + "x" * 90)], order="best", notes=["ö"])
    for line in draw(frame, width=80, height=20, glyphs=ASCII):
        line.plain.encode("ascii")


@given(
    st.lists(ROWS, max_size=5), st.integers(40, 250), st.integers(1, 20), st.sampled_from([*ORDERS])
)
def test_nothing_is_wider_or_higher_than_the_terminal(
    rows: list[Row], width: int, height: int, order: str
) -> None:
    """Whatever is known of the runs, each line fits, and no line is broken in two."""
    frame = Frame(rows=ordered(rows, order), order=order, notes=["x" * 300])
    drawn = draw(frame, width=width, height=height)
    output = io.StringIO()
    Console(file=output, width=width, force_terminal=False).print(Text("\n").join(drawn))

    assert all(line.cell_len <= width for line in drawn)
    assert len(drawn) <= height
    printed = output.getvalue().split("\n")[:-1]
    assert len(printed) == len(drawn)
    assert max(map(cell_len, printed)) <= width


def test_orders() -> None:
    """Sorted by name, numbers count as numbers; by a figure, the highest is first."""
    rows = [
        row("run-10", best=1.0, iteration=5, started_at=3.0),
        row("run-2", iteration=7, status="finished", started_at=9.0),
        row("run-1", best=3.0, status="crashed", started_at=9.0),
        row("run-3", best=-2.0, iteration=1, started_at=4.0),
    ]
    names = {by: [r.name.removeprefix("run-") for r in ordered(rows, by)] for by in ORDERS}

    assert names == {
        "activity": ["3", "10", "1", "2"],
        "name": ["1", "2", "3", "10"],
        "best": ["1", "10", "3", "2"],
        "iteration": ["2", "10", "3", "1"],
    }
