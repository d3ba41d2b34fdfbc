from __future__ import annotations

import datetime as dt
import json
import math
import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from aegir_stream.feed_reader import FeedReader, progress_trajectory, read_progress
from aegir_stream.launches import launches_in
from aegir_stream.layout import RunDirectory
from aegir_stream.processes import is_alive, this_process
from aegir_stream.progress import ProgressFeed
from aegir_stream.sinks import JournalSink
from aegir_stream.standing import run_state
from aegir_stream.testing import ManualClock
from core.runs import drive


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that is not there yet."""
    return RunDirectory.at(tmp_path / "runs" / "one")


def written(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the lines of the feed, each of which must be a row."""
    return [json.loads(line) for line in run.live("progress").read_text().splitlines()]


# -- rows ------------------------------------------------------------------------------------------


def test_a_row_holds_what_was_given(run: RunDirectory) -> None:
    """The six keys first, extra ones behind them; what is missing is left out."""
    with ProgressFeed(run.root, clock=ManualClock(5.0)) as feed:
        assert feed.append(iter=1, score=0.5, program_id="p", model="m", cost=0.25, tags=["a"])
        assert feed.append(iter=2, ts=9.0)

    assert run.live("progress").read_text() == (
        '{"iter":1,"score":0.5,"best":0.5,"program_id":"p","model":"m","ts":5.0,'
        '"cost":0.25,"tags":["a"]}\n'
        '{"iter":2,"best":0.5,"ts":9.0}\n'
    )


class Scalar:
    """A number as array libraries have them: of no standard type, with `tolist`."""

    def __init__(self, value: object) -> None:
        self.value = value

    def tolist(self) -> object:
        """Return the number."""
        return self.value


ODD: list[tuple[object, object]] = [
    (Scalar(3), 3),
    (Scalar([[1.5], [2.5]]), [[1.5], [2.5]]),
    (float("nan"), "NaN"),
    ([1.0, float("-inf")], [1.0, "-Infinity"]),
    (10**30, str(10**30)),
    (Path("/a"), "/a"),
    (dt.date(2026, 1, 2), "2026-01-02"),
    (Decimal("0.1"), "0.1"),
    ({1: {2}, ("a",): None}, {"1": [2], "('a',)": None}),
    ("line\u2028break\nand \ud800", "line\u2028break\nand ?"),
    (True, True),
    (None, None),
]


@pytest.mark.parametrize(("value", "found"), ODD, ids=lambda value: ascii(value)[:20])
def test_extra_keys_are_kept(run: RunDirectory, value: object, found: object) -> None:
    """As they are where JSON has a form for them, as a number's plain value, or as their text."""
    with ProgressFeed(run.root) as feed:
        assert feed.append(iter=1, extra=value)

    (row,) = written(run)
    assert row["extra"] == found
    assert type(row["extra"]) is type(found)


class Hostile:
    """What raises at every touch."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError("no text")

    __repr__ = __str__

    def __float__(self) -> float:
        """Fail."""
        raise RuntimeError("no number")


def test_nothing_that_is_appended_reaches_the_loop(run: RunDirectory) -> None:
    """What cannot be written is left out of its row, or the row is refused; both are counted."""
    endless: list[Any] = []
    endless.append(endless)
    with ProgressFeed(run.root) as feed:
        assert feed.append(iter=1, score="high", extra=Hostile())  # type: ignore[arg-type]
        assert feed.append(iter=2, score=1.0, model=Hostile(), extra=endless)  # type: ignore[arg-type]
        for iteration in (None, True, "3", 1.5, math.nan, 1 << 63, Hostile(), [1]):
            assert not feed.append(iter=iteration, score=9.0)  # type: ignore[arg-type]
        assert feed.append(iter=Scalar(3), score=Scalar(2.0), best=Fraction(5, 2))  # type: ignore[arg-type]
        assert feed.append(iter=4.0)  # type: ignore[arg-type]
        assert feed.statistics().errors == 12

    for row in (rows := written(run)):
        del row["ts"]
    assert rows == [
        {"iter": 1, "extra": None},
        {"iter": 2, "score": 1.0, "best": 1.0, "extra": None},
        {"iter": 3, "score": 2.0, "best": 2.5},
        {"iter": 4, "best": 2.0},
    ]


def test_the_best_is_the_highest_finite_score(run: RunDirectory) -> None:
    """Scores that are none do not hide it."""
    with ProgressFeed(run.root) as feed:
        for iteration, score in enumerate([None, -3.0, math.nan, math.inf, 2.0, 1.0]):
            feed.append(iter=iteration, score=score)

    assert [row.get("best") for row in written(run)] == [None, -3.0, -3.0, -3.0, 2.0, 2.0]
    assert [row.get("score") for row in written(run)][2:4] == ["NaN", "Infinity"]
    assert progress_trajectory(run).best == 2.0


def test_a_feed_is_continued(run: RunDirectory) -> None:
    """The best goes on from what it holds, and a torn last line is ended before the next row."""
    with ProgressFeed(run.root) as feed:
        feed.append(iter=1, score=5.0)
    with run.live("progress").open("ab") as file:
        file.write(b'{"iter": 2, "sco')
    with ProgressFeed(run.root) as feed:
        feed.append(iter=2, score=3.0)

    reader = FeedReader(run)
    reader.poll()
    assert (reader.rows, reader.skipped) == (2, 1)
    assert read_progress(run)[-1]["best"] == 5.0


def test_a_row_is_there_at_once(run: RunDirectory) -> None:
    """Before the feed is closed or flushed: a reader that waits for the file sees it."""
    feed = ProgressFeed(run.root)
    reader = FeedReader(run)
    try:
        feed.append(iter=7, score=0.5)
        while not reader.poll():
            os.sched_yield()
        assert reader.iteration == 7
    finally:
        feed.close()


def test_two_writers_have_a_file_each(run: RunDirectory) -> None:
    """Neither waits for the other, and both are read."""
    with ProgressFeed(run.root) as one:
        one.append(iter=1, score=1.0)
        assert one._recorder.flush()
        with ProgressFeed(run.root) as other:
            other.append(iter=2, score=2.0)

    assert run.lanes("progress") == ["rank0", "rank0-2"]
    assert progress_trajectory(run).curve() == [(1, 1.0), (2, 2.0)]


def test_rows_may_be_appended_from_many_threads(run: RunDirectory) -> None:
    """Each is a whole line."""
    with ProgressFeed(run.root) as feed:
        threads = [
            threading.Thread(target=lambda k=k: [feed.append(iter=50 * k + i) for i in range(50)])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted(row["iter"] for row in written(run)) == [*range(200)]


# -- trouble ---------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_does_not_stop_the_loop(tmp_path: Path) -> None:
    """It is counted, and said once."""
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    with ProgressFeed(blocked / "run") as feed:
        for i in range(3):
            feed.append(iter=i)

    statistics = feed.statistics()
    assert statistics.records_dropped == 3
    assert statistics.last_error is not None
    assert "Not a directory" in statistics.last_error


def test_a_feed_that_is_closed_takes_no_rows(run: RunDirectory) -> None:
    """And closing it again does nothing."""
    feed = ProgressFeed(run.root)
    assert feed.close()
    assert not feed.append(iter=1)
    assert feed.close(status="failed")

    assert [entry.status for entry in launches_in(run.read_manifest())] == ["finished"]


# -- the launch ------------------------------------------------------------------------------------


def test_the_manifest_knows_a_run_without_a_row(run: RunDirectory) -> None:
    """Its process, its start and its length; the end is entered when it comes."""
    feed = ProgressFeed(run.root, total=30, clock=ManualClock(5.0))
    assert feed._recorder.flush()
    (entry,) = launches_in(run.read_manifest())
    assert entry.process == this_process()
    assert (entry.started_at, entry.total, entry.ended_at) == (5.0, 30, None)
    feed.close()

    (entry,) = launches_in(run.read_manifest())
    assert (entry.ended_at, entry.status) == (5.0, "finished")


def test_an_exception_ends_the_launch_as_failed(run: RunDirectory) -> None:
    """It passes through unchanged."""
    with pytest.raises(ZeroDivisionError), ProgressFeed(run.root) as feed:
        feed.append(iter=1, score=1 / 0)

    assert [entry.status for entry in launches_in(run.read_manifest())] == ["failed"]


def test_every_launch_has_its_entry_beside_those_of_a_trainer(run: RunDirectory) -> None:
    """Without an attempt number: the ranks of a trainer agree on theirs by what stands there."""
    with ProgressFeed(run.root) as feed:
        feed.append(iter=1)
    journals = [JournalSink(run), JournalSink(run, rank=1)]
    drive(journals[0].open())
    with ProgressFeed(run.root) as feed:
        feed.append(iter=2)
    drive(journals[1].open())

    assert [journal._chain.attempt for journal in journals if journal._chain] == [1, 1]
    attempts = [entry.get("attempt") for entry in run.read_manifest()["attempts"]]
    assert attempts == [None, 1, None]
    for journal in journals:
        drive(journal.aclose())


LOOP = """
import os, sys
from aegir_stream.progress import ProgressFeed
feed = ProgressFeed(sys.argv[1])
for i in range(20):
    feed.append(iter=i, score=i)
feed._recorder.flush()
print("ready", flush=True)
sys.stdin.readline()
"""


def start(run: RunDirectory) -> subprocess.Popen[str]:
    """Start a job, and wait until its rows are written."""
    command = [sys.executable, "-c", LOOP, str(run.root)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_killed_job_leaves_its_rows_and_no_end(run: RunDirectory) -> None:
    """What was written is there; its process is proven dead."""
    with start(run) as child:
        child.send_signal(signal.SIGKILL)

    assert progress_trajectory(run).curve() == [(i, float(i)) for i in range(20)]
    (entry,) = launches_in(run.read_manifest())
    assert entry.ended_at is None
    assert entry.process is not None
    assert is_alive(entry.process) is False


def test_a_job_that_exits_without_closing_has_stopped(run: RunDirectory) -> None:
    """The end of the interpreter closes the feed."""
    with start(run) as child:
        child.communicate("\n")

    assert [entry.status for entry in launches_in(run.read_manifest())] == ["stopped"]


def test_the_example_is_a_job_like_any_other(run: RunDirectory) -> None:
    """The optimiser of the documentation feeds a viewer."""
    example = Path(__file__).parents[2] / "docs" / "examples" / "optimise.py"
    command = [sys.executable, "-X", "dev", "-W", "error", str(example), str(run.root), "30", "0"]
    subprocess.run(command, check=True)

    state = run_state(run)
    assert (state.status, state.iteration, state.total, state.calls) == ("finished", 29, 30, 30.0)
    assert state.best == max(score for _, score in state.curve)
