from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.config import P5Cfg
from aegir_stream.disk import Disk
from aegir_stream.feed_reader import FeedReader, progress_trajectory, read_progress
from aegir_stream.layout import RunDirectory
from aegir_stream.testing import Fault, SimulatedMachine


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory."""
    return RunDirectory.at(tmp_path)


def write(run: RunDirectory, *lines: bytes | dict[str, Any], lane: str = "rank0") -> None:
    """Append lines to the feed, as a foreign program would."""
    content = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    with run.live("progress", lane).open("ab") as file:
        file.write(content)


def read(run: RunDirectory) -> FeedReader:
    """Read a feed from scratch."""
    reader = FeedReader(run)
    reader.poll()
    return reader


def state(reader: FeedReader) -> dict[str, Any]:
    """Return everything that a reader knows."""
    known = {name: value for name, value in vars(reader).items() if not name.startswith("_")}
    return known | {"trajectory": reader.trajectory.curve()}


# -- what a feed may hold --------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b'{"iter": 1, "sco'])
def test_a_feed_without_a_row_is_no_error(run: RunDirectory, content: bytes | None) -> None:
    """Missing, empty, blank, or with nothing but an unfinished line."""
    if content is not None:
        run.live("progress").write_bytes(content)
    reader = read(run)

    assert (reader.rows, reader.skipped, reader.iteration) == (0, 0, None)
    assert read_progress(run) == []


def test_a_run_that_is_not_there_yet_is_found_later(tmp_path: Path) -> None:
    """A viewer may be opened before the job begins."""
    run = RunDirectory.at(tmp_path / "later")
    reader = FeedReader(run)
    assert not reader.poll()
    run.root.mkdir()
    write(run, {"iter": 0, "score": 1.5})

    assert reader.poll()
    assert reader.trajectory.curve() == [(0, 1.5)]


def test_a_torn_last_line_is_read_when_it_is_whole(run: RunDirectory) -> None:
    """The newline is the commit mark."""
    with run.live("progress").open("wb", buffering=0) as file:
        file.write(b'{"iter": 1, "score": 0.5}\n{"iter": 2, "sco')
        reader = read(run)
        assert reader.iteration == 1
        file.write(b're": 0.75}\n')

    assert reader.poll()
    assert (reader.trajectory.curve(), reader.skipped) == ([(1, 0.5), (2, 0.75)], 0)


NO_ROWS = [
    b"garbage",
    b"\x00\xff\x80\x01",
    bytes(64),
    b"[1, 2]",
    b"17",
    b"null",
    b"{}",
    b'{"score": 1.0}',
    b'{"iter": null, "score": 1}',
    b'{"iter": true, "score": 1}',
    b'{"iter": "7", "score": 1}',
    b'{"iter": 1.5, "score": 1}',
    b'{"iter": NaN, "score": 1}',
    b'{"iter": 9223372036854775808, "score": 1}',
    b'{"iter": %s}' % (b"9" * 5000),
    b'{"iter": 1, "score": 1} trailing',
    b'{"iter": 1, "score": 1}{"iter": 2, "score": 2}',
    b'{"iter": 1, "model": "\xff"}',
    b'{"iter": 1, "deep": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("line", NO_ROWS, ids=lambda line: repr(line[:30]))
def test_a_line_that_is_no_row_is_skipped_and_counted(run: RunDirectory, line: bytes) -> None:
    """Its neighbours are read."""
    write(run, {"iter": 1, "score": 0.5}, line, {"iter": 2, "score": 0.25})
    reader = read(run)

    assert (reader.rows, reader.skipped) == (2, 1)
    assert reader.trajectory.curve() == [(1, 0.5), (2, 0.25)]
    assert [row["iter"] for row in read_progress(run)] == [1, 2]


def test_two_damaged_lines_do_not_make_a_row_together(run: RunDirectory) -> None:
    """Lines are read one by one, whatever they would mean joined."""
    write(run, b'{"iter": 1,', b'"score": 3}', b'{"iter": 4}{"iter": 5}')

    assert (read(run).rows, read(run).skipped) == (0, 3)


def test_control_lines_are_no_rows(run: RunDirectory) -> None:
    """Nor are they damage, should somebody write them here."""
    write(run, b'{"$log":"later","iter":1,"score":9}', {"iter": 2, "score": 1.0})

    assert (read(run).rows, read(run).skipped) == (1, 0)
    assert [row["iter"] for row in read_progress(run)] == [2]


NOT_FINITE = ["NaN", "-NaN", "Infinity", "-Infinity", '"NaN"', '"Infinity"', "1e999"]


@pytest.mark.parametrize("score", [*NOT_FINITE, "null", "true", '"high"', "[1]", "9" * 400])
def test_a_row_without_a_finite_score_counts_and_is_no_point(run: RunDirectory, score: str) -> None:
    """Bare or quoted, missing or of another kind."""
    write(run, {"iter": 1, "score": 0.5}, b'{"iter": 2, "score": %s}' % score.encode(), {"iter": 3})
    reader = read(run)

    # `-NaN` is spelled by nobody: the one that is no JSON to any reader.
    assert reader.rows + reader.skipped == 3
    assert reader.skipped == (score == "-NaN")
    assert (reader.iteration, reader.trajectory.curve()) == (3, [(1, 0.5)])
    assert (reader.score, reader.trajectory.best) == (0.5, 0.5)


def test_the_last_row_of_an_iteration_counts(run: RunDirectory) -> None:
    """Iterations come out of order, and again after a resume."""
    write(run, *({"iter": i, "score": s} for i, s in [(3, 9.0), (1, 1.0), (2, 2.0)]))
    reader = read(run)
    write(run, *({"iter": i, "score": s} for i, s in [(3, 0.5), (2, None)]))
    reader.poll()

    assert reader.trajectory.curve() == [(1, 1.0), (3, 0.5)]
    assert reader.trajectory.best == 1.0
    assert [(r["iter"], r["score"]) for r in read_progress(run)] == [(1, 1.0), (2, None), (3, 0.5)]
    assert progress_trajectory(run).curve() == reader.trajectory.curve()


def test_a_float_that_is_an_integer_is_an_iteration(run: RunDirectory) -> None:
    """As programs write it that keep their counters in arrays; the rows then say the integer."""
    write(run, b'{"iter": 2.0, "score": 1, "model": "m"}')

    assert read(run).trajectory.curve() == [(2, 1.0)]
    assert read_progress(run) == [{"iter": 2, "score": 1, "model": "m"}]


def test_lines_of_other_systems_are_rows(run: RunDirectory) -> None:
    """With a byte order mark, and ended by carriage returns."""
    write(run, b'\xef\xbb\xbf{"iter": 1, "score": 1}\r', b'{"iter": 2, "score": 2}\r')

    assert read(run).trajectory.curve() == [(1, 1.0), (2, 2.0)]


def test_the_clock_may_be_set_back(run: RunDirectory) -> None:
    """A gap is what lies between two rows in the direction of time."""
    times = [100.0, 130.0, 20.0, 25.0, "NaN", None, 27.0]
    write(run, *({"iter": i, "ts": ts} for i, ts in enumerate(times)))
    reader = read(run)

    assert reader.slowest_gap_s == 30.0
    assert list(reader.recent) == [100.0, 130.0, 20.0, 25.0, 27.0]


def test_cost_and_calls_are_the_newest_finite_ones(run: RunDirectory) -> None:
    """They are running totals of the job; rows may lack them."""
    write(run, {"iter": 1, "cost": 0.5, "calls": 3}, {"iter": 2, "cost": "NaN"}, {"iter": 3})
    write(run, {"iter": 4, "cost": True, "calls": "many"})
    reader = read(run)

    assert (reader.cost, reader.calls) == (0.5, 3.0)


def test_a_gigantic_line_is_passed_over(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bounded memory, and counted."""
    monkeypatch.setattr("aegir_stream.tail.LINE_LIMIT_BYTES", 1 << 20)
    write(run, {"iter": 1, "score": 1.0}, b'"' + b"x" * (3 << 20) + b'"', {"iter": 2, "score": 2.0})

    assert state(read(run))["trajectory"] == [(1, 1.0), (2, 2.0)]
    assert read(run).skipped == 1


# -- a feed that is replaced while it is read ------------------------------------------------------

ROWS = [{"iter": i, "score": float(i), "ts": 100.0 + i} for i in range(50)]


def test_a_feed_that_is_replaced_is_read_from_its_start(run: RunDirectory) -> None:
    """Nothing is left of the earlier one, also where the new one begins alike and is longer."""
    write(run, *ROWS[:5])
    reader = read(run)
    new = run.root / "new"
    new.write_bytes(run.live("progress").read_bytes().splitlines(keepends=True)[0])
    new.replace(run.live("progress"))
    write(run, *({"iter": 100 + i, "score": 1.0} for i in range(20)))

    assert reader.poll()
    assert state(reader) == state(read(run))
    assert (reader.rows, reader.first) == (21, 0)


def test_a_replaced_feed_may_end_alike(run: RunDirectory) -> None:
    """It is another file all the same."""
    last = {"iter": 9, "score": 0.0, "note": "x" * 100}
    write(run, {"iter": 1, "score": 1.0}, last)
    reader = read(run)
    run.live("progress").rename(run.root / "old")
    write(run, {"iter": 1, "score": 2.0}, last)

    assert reader.poll()
    assert reader.trajectory.curve() == [(1, 2.0), (9, 0.0)]


@pytest.mark.parametrize("rows", [0, 2, 30])
def test_a_feed_that_is_written_anew_in_place_is_read_from_its_start(
    run: RunDirectory, rows: int
) -> None:
    """Cut off at the same inode; shorter than before, or longer already."""
    write(run, *ROWS[:10])
    reader = read(run)
    os.truncate(run.live("progress"), 0)
    write(run, ROWS[0], *({"iter": 200 + i, "score": 1.0} for i in range(rows)))

    assert reader.poll()
    assert state(reader) == state(read(run))
    assert reader.rows == rows + 1


def test_a_feed_that_is_removed_is_forgotten(run: RunDirectory) -> None:
    """The run begins anew."""
    write(run, *ROWS[:5])
    reader = read(run)
    run.live("progress").unlink()

    assert reader.poll()
    assert state(reader) == state(read(run))
    assert not reader.poll()
    write(run, ROWS[7])
    assert reader.poll()
    assert reader.trajectory.curve() == [(7, 7.0)]


def test_a_feed_that_cannot_be_read_for_a_while_keeps_what_was_read() -> None:
    """What came meanwhile is read afterwards, once."""
    machine = SimulatedMachine()
    run = RunDirectory(P5Cfg(output_dir="/run"), disk=Disk(machine.process()))
    machine.make_directory(run.root)
    path = run.live("progress")
    machine.put(path, b'{"iter": 1, "score": 1}\n')
    reader = read(run)
    machine.put(path, b'{"iter": 1, "score": 1}\n{"iter": 2, "score": 2}\n')
    machine.fail(Fault(error=5, under=path, kinds=frozenset({"stat", "open"}), times=None))
    assert not reader.poll()
    assert reader.rows == 1
    machine.mend()

    assert reader.poll()
    assert reader.rows == 2


# -- several writers -------------------------------------------------------------------------------


def test_every_writer_is_read(run: RunDirectory) -> None:
    """In the order of their lanes, whenever they wrote."""
    reader = FeedReader(run)
    for count, lane in [(3, "rank0-2"), (2, "rank0"), (1, "rank1"), (1, "rank0-2"), (2, "rank1")]:
        rows = ({"iter": i, "score": reader.rows + i, "ts": 5.0 * i} for i in range(count))
        write(run, *rows, lane=lane)
        assert reader.poll()
        assert state(reader) == state(read(run))
    assert reader.rows == 9


# -- law: read as it grows, or at once -------------------------------------------------------------

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from(["NaN", "Infinity", "many"]),
)
columns = st.sampled_from(["score", "ts", "cost", "calls", "best", "note"])
plain_rows = st.builds(
    lambda iteration, fields: json.dumps({"iter": iteration} | fields).encode(),
    st.integers(-2, 12),
    st.dictionaries(columns, values, max_size=4),
)
some_lines = st.one_of(plain_rows, plain_rows, plain_rows, st.sampled_from(NO_ROWS), st.binary())
feeds = st.lists(some_lines, max_size=25).map(b"\n".join)


@given(feeds, st.lists(st.integers(0, 400), max_size=8))
def test_reading_as_it_grows_gives_what_reading_at_once_gives(feed: bytes, cuts: list[int]) -> None:
    """However the bytes arrive."""
    with tempfile.TemporaryDirectory(prefix="aegir-") as directory:
        run = RunDirectory.at(directory)
        reader = FeedReader(run)
        with run.live("progress").open("ab", buffering=0) as file:
            for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(feed)], strict=True):
                file.write(feed[start:end])
                reader.poll()
            file.write(b"\n")
        reader.poll()
        at_once = read(run)

        assert repr(state(reader)) == repr(state(at_once))
        curve = at_once.trajectory.curve()
        rows = {row["iter"]: row.get("score", math.nan) for row in read_progress(run)}
        assert len(rows) >= len(curve)
        assert all(math.isclose(float(rows[i]), s) for i, s in curve)
