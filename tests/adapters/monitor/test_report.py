from __future__ import annotations

import pytest
from hypothesis import given

from adapters.monitor.rows import ROWS, full, row
from aegir_adapters.monitor import BLOCKS, Row, report, report_line
from aegir_stream.liveness import Status


def test_a_line_says_what_is_known_each_with_its_word() -> None:
    """A line can be read, and searched, without a heading."""
    assert report_line(full()) == (
        "live      evolve/run-1  iteration 120/400  score 0.5000  best 0.7500  rate 2.5s/it"
        "  11m 40s left  cost 1.250  calls 360  elapsed 10m 00s"
    )
    assert report_line(row()) == "live      run  no iteration yet"


@pytest.mark.parametrize("status", ["finished", "crashed", "stalled"])
def test_no_time_is_left_to_what_does_not_go_on(status: Status) -> None:
    """The time left is told of live runs only, whatever was left when they stopped."""
    assert "11m 40s left" in report_line(full())
    assert "left" not in report_line(full(status=status))


def test_names_are_under_each_other() -> None:
    """What follows the names begins in the same column."""
    lines = report([row("a", iteration=1), row("long", iteration=2, status="crashed")])

    assert lines == ["live      a     iteration 1", "crashed   long  iteration 2"]


@given(ROWS)
def test_a_run_is_one_line_of_plain_text(row: Row) -> None:
    """Whatever a run is called, its line has no control characters."""
    line = report_line(row, glyphs=BLOCKS)

    assert line.isprintable()
    assert len(line.splitlines()) == 1
