from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from aegir_stream.disk import AppendHandle, Disk
from aegir_stream.layout import RunDirectory
from aegir_stream.liveness import Status
from aegir_stream.processes import this_process
from aegir_stream.progress import ProgressFeed
from aegir_stream.sinks import JournalSink
from aegir_stream.standing import RunStanding, RunWatch, run_state
from aegir_stream.testing import ManualClock, make_append, make_record
from core.runs import drive

NOW = 1_000_000.0


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory."""
    return RunDirectory.at(tmp_path)


def write(run: RunDirectory, *rows: dict[str, Any], at: float = NOW) -> None:
    """Append rows, as a foreign program does that wrote last at a given time."""
    with run.live("progress").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    age(run, at)


def age(run: RunDirectory, at: float) -> None:
    """Have everything in a run been written at a given time."""
    for path in [*run.root.iterdir(), run.root]:
        os.utime(path, (at, at))


def launch(run: RunDirectory, *entries: dict[str, Any]) -> None:
    """Write a manifest with the launches given."""
    run.write_manifest({"run_id": "r", "attempts": list(entries)})


def process_fields(**other: Any) -> dict[str, Any]:
    """Return what an entry says of this process."""
    here = this_process()
    fields = {"host": here.host, "pid": here.pid}
    return fields | {"pid_started": here.started, "pid_namespace": here.namespace} | other


HERE = process_fields()
ELSEWHERE = process_fields(host="elsewhere")
DEAD = process_fields(pid_started="another boot:1")


# -- how far it got --------------------------------------------------------------------------------


def test_the_feed_tells_where_a_run_stands(run: RunDirectory) -> None:
    """Iteration, scores, cost, calls, rate, and the time left where a total is known."""
    launch(run, ELSEWHERE | {"started_at": NOW - 100, "total": 20})
    rows = [{"iter": i, "score": float(-abs(i - 3)), "ts": NOW - 40 + 4 * i} for i in range(10)]
    write(run, *rows, {"iter": 10, "score": math.nan, "cost": 1.5, "calls": 70})

    state = run_state(run, now=NOW)
    assert (state.iteration, state.score, state.best) == (10, -6.0, 0.0)
    assert state.curve == [(i, float(-abs(i - 3))) for i in range(10)]
    assert (state.cost, state.calls, state.total) == (1.5, 70.0, 20)
    assert (state.rate, state.remaining_s) == (4.0, 36.0)
    assert (state.started_at, state.ended_at, state.ending) == (NOW - 100, None, None)
    assert state.is_active


def test_a_run_without_a_feed_stands_at_its_newest_checkpoint(run: RunDirectory) -> None:
    """Until a feed says something else."""
    for step in (5, 50, 10):
        (run.root / f"checkpoint-{step}").mkdir()
    age(run, NOW)
    watch = RunWatch(run, clock=ManualClock(NOW))

    assert (watch.look().iteration, watch.look().best, watch.look().curve) == (50, None, [])
    assert watch.look().is_active
    write(run, {"iter": 7, "score": 1.0})
    assert (watch.look().iteration, watch.look().best) == (7, 1.0)


def test_a_run_that_is_not_there_has_no_standing(tmp_path: Path) -> None:
    """It is no error, and begins when it begins."""
    watch = RunWatch(RunDirectory.at(tmp_path / "later"), clock=ManualClock(NOW))
    assert watch.look() == RunStanding(status="stalled")
    watch.run.root.mkdir()
    write(watch.run, {"iter": 0, "score": 0.5})

    assert (watch.look().iteration, watch.look().status) == (0, "active")


def test_a_long_curve_is_thinned(run: RunDirectory) -> None:
    """It keeps its ends and its extremes."""
    write(run, *({"iter": i, "score": float(i == 500)} for i in range(2_000)))
    curve = RunWatch(run, points=20).look().curve

    assert len(curve) <= 20
    assert (curve[0], curve[-1]) == ((0, 0.0), (1999, 0.0))
    assert (500, 1.0) in curve


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        ([], None),
        ([5.0], None),
        ([5.0, 5.0], None),
        ([5.0, 7.0, 9.0], 2.0),
        ([900.0, 901.0, 10.0, 13.0], 3.0),
        ([10.0, 13.0, 2.0], None),
        ([-1e308, 1e308], None),
    ],
)
def test_the_rate_is_of_late(run: RunDirectory, times: list[float], rate: float | None) -> None:
    """Of the rows behind the last step back of the clock."""
    write(run, *({"iter": i, "ts": ts} for i, ts in enumerate(times)))

    assert run_state(run).rate == rate


def test_the_rate_leaves_out_the_time_between_two_launches(run: RunDirectory) -> None:
    """Rows of earlier launches say nothing of this one's."""
    launch(run, {"started_at": 1_000.0, "total": 6})
    write(run, *({"iter": i + 1, "ts": ts} for i, ts in enumerate([10.0, 11.0, 1001.0, 1006.0])))

    state = run_state(run)
    assert (state.rate, state.remaining_s) == (5.0, 10.0)


def test_the_cost_may_be_told_by_another(run: RunDirectory) -> None:
    """The feed's own is not asked then; what a reader of files runs into is no error."""
    write(run, {"iter": 1, "cost": 5.0, "calls": 5})
    told: Any = (2, math.inf)

    def costs(asked: RunDirectory) -> tuple[float | None, float | None]:
        assert asked is run
        if isinstance(told, Exception):
            raise told
        return told  # type: ignore[no-any-return]

    watch = RunWatch(run, costs=costs)
    assert (watch.look().cost, watch.look().calls) == (2.0, None)
    for each in (OSError(), KeyError("cost"), msgspec.DecodeError(), (1, 2, 3), 7, (10**400, 1)):
        told = each
        assert (watch.look().cost, watch.look().calls) == (None, None)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["iter", "score", "ts", "cost", "calls"]),
            st.none() | st.integers() | st.floats() | st.booleans(),
        ),
        max_size=12,
    ),
    st.dictionaries(
        st.sampled_from(["started_at", "ended_at", "total", "pid", "host", "status"]),
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    ),
    st.floats(0, 1e10),
)
def test_every_number_is_finite(
    rows: list[dict[str, Any]], entry: dict[str, Any], now: float
) -> None:
    """Whatever feed and manifest hold, the standing is JSON."""
    with tempfile.TemporaryDirectory(prefix="aegir-") as directory:
        run = RunDirectory.at(directory)
        launch(run, entry)
        write(run, *rows)
        state = run_state(run, now=now)

    json.dumps(asdict(state), allow_nan=False)


# -- whether it goes on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "quiet_s", "status"),
    [
        ([HERE | {"ended_at": 5.0}], 0.0, "finished"),
        ([HERE], 9e5, "active"),
        ([DEAD], 0.0, "crashed"),
        ([DEAD | {"ended_at": 5.0, "status": "failed"}], 0.0, "finished"),
        ([HERE | {"ended_at": 5.0}, DEAD], 0.0, "crashed"),
        ([DEAD, ELSEWHERE], 599.0, "active"),
        ([DEAD, ELSEWHERE], 601.0, "stalled"),
        ([], 599.0, "active"),
        ([], 601.0, "stalled"),
        ([{"pid": 0, "host": 7}], 601.0, "stalled"),
        # The file's time comes from a host whose clock is ahead.
        ([], -30.0, "active"),
        ([], -9e5, "stalled"),
        # Two writers of one process: it goes on until both have ended, or the process has.
        ([HERE, HERE | {"ended_at": 5.0}], 0.0, "active"),
        ([HERE | {"ended_at": 4.0}, HERE | {"ended_at": 5.0}], 0.0, "finished"),
        ([DEAD, DEAD | {"ended_at": 5.0}], 0.0, "finished"),
    ],
)
def test_the_newest_launch_decides(
    run: RunDirectory, entries: list[dict[str, Any]], quiet_s: float, status: Status
) -> None:
    """Its end marker, then its process, then how long nothing was written."""
    launch(run, *entries)
    write(run, {"iter": 1, "score": 1.0}, at=NOW - quiet_s)

    assert run_state(run, now=NOW).status == status


def test_slow_iterations_are_waited_for(run: RunDirectory) -> None:
    """Three times as long as the slowest took."""
    write(run, {"iter": 1, "ts": 0.0}, {"iter": 2, "ts": 1_000.0})

    assert run_state(run, now=NOW + 2_999).status == "active"
    assert run_state(run, now=NOW + 3_001).status == "stalled"


@pytest.mark.parametrize("entry", [ELSEWHERE, DEAD, {}])
def test_a_held_file_shows_a_run_that_no_number_can(
    run: RunDirectory, entry: dict[str, Any]
) -> None:
    """A writer in another container holds its lock; it goes on, however silent."""
    write(run, {"iter": 1})
    launch(run, entry)
    age(run, NOW)
    watch = RunWatch(run, clock=ManualClock(NOW + 9e5))
    handle = Disk().append(run.live("progress"))
    assert handle.lock()
    assert watch.look().status == "active"
    handle.close()

    assert watch.look().status == ("crashed" if entry is DEAD else "stalled")


def test_no_lock_is_asked_for_where_the_process_tells(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look must not be in the way of a writer on this host."""
    launch(run, HERE)
    write(run, {"iter": 1})

    def refuse(*_: object) -> None:
        raise AssertionError("a lock was asked for")

    monkeypatch.setattr(Disk, "is_leased", refuse)
    assert run_state(run).status == "active"
    launch(run, HERE | {"ended_at": 1.0})
    assert run_state(run).status == "finished"


def test_a_silent_run_lives_again_with_its_next_line(run: RunDirectory) -> None:
    """Silence is no proof of anything, and what was seen to happen happened."""
    clock = ManualClock(NOW)
    watch = RunWatch(run, clock=clock)
    write(run, {"iter": 1})
    assert watch.look().status == "active"
    clock.advance(700)
    assert watch.look().status == "stalled"
    # Its host's clock is far behind.
    write(run, {"iter": 2}, at=NOW - 9e5)
    assert watch.look().status == "active"
    clock.advance(601)
    assert watch.look().status == "stalled"


LOOP = """
import sys
from aegir_stream.progress import ProgressFeed
feed = ProgressFeed(sys.argv[1])
feed._recorder.flush()
print("ready", flush=True)
for line in sys.stdin:
    feed.append(iter=int(line), score=1.0)
    feed._recorder.flush()
    print("done", flush=True)
feed.close()
"""


@pytest.fixture
def job(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """A job that appends a row for every line that it is sent."""
    command = [sys.executable, "-c", LOOP, str(run.root)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        yield child
        child.kill()


def test_a_killed_job_has_crashed(run: RunDirectory, job: subprocess.Popen[str]) -> None:
    """It was active before its first row; its death is proven, not guessed from silence."""
    watch = RunWatch(run)
    assert (watch.look().status, watch.look().iteration) == ("active", None)
    assert job.stdin
    assert job.stdout
    job.stdin.write("1\n")
    job.stdin.flush()
    assert job.stdout.readline() == "done\n"
    assert (watch.look().status, watch.look().iteration) == ("active", 1)
    job.kill()
    job.wait()

    assert (watch.look().status, watch.look().iteration) == ("crashed", 1)
    assert watch.look() is watch.look()
    assert run_state(run).status == "crashed"
    with ProgressFeed(run.root) as feed:
        assert feed._recorder.flush()
        assert watch.look().status == "active"
    assert (watch.look().status, watch.look().ending) == ("finished", "finished")


def test_a_job_that_ends_has_finished(run: RunDirectory, job: subprocess.Popen[str]) -> None:
    """Its end marker says so before its process is gone."""
    watch = RunWatch(run)
    assert watch.look().is_active
    job.communicate("1\n2\n")

    state = watch.look()
    assert (state.status, state.iteration, state.ending) == ("finished", 2, "finished")
    assert state.ended_at is not None


# -- trainers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("entered", [True, False])
def test_the_journal_of_a_trainer_says_that_it_has_ended(
    run: RunDirectory, *, entered: bool
) -> None:
    """In the manifest, and by its closing mark where that could not be written."""
    sink = JournalSink(run)
    drive(sink.open())
    drive(sink.write(make_append(make_record())))
    watch = RunWatch(run)
    assert watch.look().status == "active"
    manifest = run.read_manifest()
    drive(sink.aclose(status="stopped"))
    if not entered:
        run.write_manifest(manifest)
        # As where the launch began within the tick that its files are stamped with.
        started = manifest["attempts"][-1]["started_at"] - 0.01
        os.utime(run.live("sae_features"), (started, started))

    assert (watch.look().status, watch.look().ending) == ("finished", "stopped")
    again = JournalSink(run)
    drive(again.open())
    assert (watch.look().status, watch.look().ending) == ("active", None)
    drive(again.aclose())
    assert watch.look().status == "finished"


def test_a_closing_mark_says_nothing_of_a_later_launch(run: RunDirectory) -> None:
    """An optimiser that goes on where a trainer ended is active until it ends itself."""
    sink = JournalSink(run)
    drive(sink.open())
    drive(sink.aclose())
    age(run, NOW)
    launch(run, ELSEWHERE | {"started_at": NOW + 1})

    assert run_state(run, now=NOW).status == "active"
    launch(run, ELSEWHERE | {"started_at": NOW - 1})
    assert run_state(run, now=NOW).status == "finished"


# -- idle looks ------------------------------------------------------------------------------------


def test_a_look_at_nothing_new_returns_the_same(run: RunDirectory) -> None:
    """The same object, so that a viewer need not compare, and without reading a file again."""
    launch(run, HERE | {"ended_at": 5.0})
    write(run, {"iter": 1, "score": 1.0})
    reads: list[Path] = []

    class Counting(Disk):
        def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Any:
            reads.append(path)
            return super().read(path, offset=offset, size=size, head=head)

        def append(self, path: Path, *, exclusive: bool = False) -> AppendHandle:
            raise AssertionError("looking writes nothing")

    watch = RunWatch(RunDirectory(run.cfg, disk=Counting()))
    first = watch.look()
    assert reads
    reads.clear()
    assert watch.look() is first
    assert not reads
    write(run, {"iter": 2, "score": 2.0})
    assert watch.look().best == 2.0


def test_this_host_is_named_as_the_manifest_names_it() -> None:
    """Evidence of a process is evidence on the host that asks."""
    assert this_process().host == socket.gethostname()


def test_a_run_that_is_removed_is_not_alive(tmp_path: Path) -> None:
    """Its removal is seen, and is no sign of life."""
    run = RunDirectory.at(tmp_path / "run")
    run.root.mkdir()
    run.live("progress").write_text('{"iter":1,"score":0.5}\n')
    watch = RunWatch(run)
    assert watch.look().status == "active"
    shutil.rmtree(run.root)

    assert watch.look().status == "stalled"
    assert watch.look().iteration is None
