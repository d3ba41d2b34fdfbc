from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.catalog import Catalog
from aegir_stream.errors import MalformedEventError, SinkClosedError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import lease_of
from aegir_stream.sweep_events import SweepCell, SweepEnded, SweepEvent, SweepStarted
from aegir_stream.sweep_log import SweepLog
from aegir_stream.sweep_reader import SweepReader, SweepStatus, decode_sweep_event, read_sweep
from aegir_stream.testing import ManualClock
from aegir_stream.verification import verify
from aegir_stream.views import SweepGrids, SweepView, scale_of
from core.runs import FullDisk, lived, on

STARTED = SweepStarted(
    model="checkpoint-4",
    tokens=("41", "0a", "=>"),
    hooks=("resid_pre", "mlp_out"),
    layers=(0, 2, 3),
    positions=(0, 1, 2),
    metric="recovered",
    unpatched=0.0,
    restored=1.0,
    cells=18,
)
KEYS = [(hook, layer, at) for hook in STARTED.hooks for layer in (0, 2, 3) for at in (0, 1, 2)]

values = st.one_of(st.none(), st.floats())
cells = st.builds(
    lambda key, value, flags: SweepCell(
        hook=key[0],
        layer=key[1],
        position=key[2],
        value=value,
        below_noise=flags[0],
        free=flags[1],
        error="no number" if flags[2] else None,
    ),
    st.sampled_from(KEYS),
    values,
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
endings = st.builds(
    SweepEnded,
    status=st.sampled_from(["finished", "failed", "cancelled"]),
    noise_floor=values,
    elapsed_s=st.none() | st.floats(0, 1e6),
)
sweeps = st.builds(
    lambda found, ended: [STARTED, *found, *ended],
    st.lists(cells, max_size=30),
    st.lists(endings, max_size=1),
)


def cell(
    layer: int, position: int, value: float | None, *, hook: str = "resid_pre", free: bool = False
) -> SweepCell:
    """Return a cell."""
    return SweepCell(hook=hook, layer=layer, position=position, value=value, free=free)


def fold(*batches: list[SweepEvent]) -> SweepGrids:
    """Fold batches of events, one after the other."""
    view = SweepView()
    state = view.initial()
    for batch in batches:
        state = view.fold(state, batch)
    return state


def plain(state: SweepGrids) -> str:
    """Return a state as text: NaN equals itself there."""
    return repr(msgspec.structs.asdict(state))


def cut(events: list[SweepEvent], places: list[int]) -> list[list[SweepEvent]]:
    """Cut a list into batches at these places."""
    ends = sorted(place % (len(events) + 1) for place in places)
    return [events[a:b] for a, b in zip([0, *ends], [*ends, len(events)], strict=True)]


# -- events and view -------------------------------------------------------------------------------


@given(st.one_of(st.just(STARTED), cells, endings))
def test_an_event_survives_its_line(event: SweepEvent) -> None:
    """What is read from a line is what was written, values that are no numbers included."""
    line = codec.encode(event)
    assert line.count(b"\n") == 1
    assert repr(decode_sweep_event(line)) == repr(event)


@given(sweeps, st.lists(st.integers(0, 100), max_size=6))
def test_batches_do_not_matter(events: list[SweepEvent], places: list[int]) -> None:
    """However a sweep is cut into batches, its grids are the same."""
    assert plain(fold(*cut(events, places))) == plain(fold(events))


@given(sweeps, st.integers(0, 100), st.integers(0, 100))
def test_what_comes_twice_counts_once(events: list[SweepEvent], first: int, more: int) -> None:
    """A stretch that is told again from any place, up to where it was, changes nothing."""
    first %= len(events)
    upto = first + more % (len(events) - first + 1)
    again = [*events[:upto], *events[first:upto], *events[upto:]]
    assert plain(fold(again)) == plain(fold(events))


def test_of_a_cell_the_last_line_counts() -> None:
    """A cell that is told again, as after a failed write, is what was told last."""
    state = fold([STARTED, cell(0, 1, 0.5), cell(0, 1, 0.75)])
    assert [found.value for found in state.cells.values()] == [0.75]


@given(sweeps)
def test_the_grid_holds_every_cell_in_its_place(events: list[SweepEvent]) -> None:
    """Rows are layers and columns are positions, in the order in which they were asked for."""
    state = fold(events)
    for hook in STARTED.hooks:
        rows = state.rows(hook)
        assert [len(row) for row in rows] == [3, 3, 3]
        for layer, row in zip(STARTED.layers, rows, strict=True):
            for position, found in zip(STARTED.positions, row, strict=True):
                assert found is state.cells.get((hook, layer, position, 0))


def test_a_sweep_that_has_not_begun_has_no_grid() -> None:
    """Cells whose beginning is not known yet are kept."""
    state = fold([cell(0, 1, 0.5)])
    assert (state.rows("resid_pre"), state.extremes()) == ([], ())
    assert fold([cell(0, 1, 0.5)], [STARTED]).best("resid_pre") is not None


def test_the_best_cell_is_the_first_of_the_largest() -> None:
    """Cells without a number are none; where less is better, it is the smallest."""
    found: list[SweepEvent] = [cell(0, 0, math.nan), cell(0, 1, 0.5), cell(2, 0, 0.5)]
    found += [cell(3, 2, -1.0), cell(3, 1, None)]
    best = fold([STARTED, *found]).best("resid_pre")
    assert best is not None
    assert (best.layer, best.position, best.value) == (0, 1, 0.5)
    lower = msgspec.structs.replace(STARTED, metric="kl", lower_is_better=True)
    best = fold([lower, *found]).best("resid_pre")
    assert best is not None
    assert (best.layer, best.position) == (3, 2)
    assert fold([STARTED, *found]).best("mlp_out") is None
    assert [one.hook for one in fold([STARTED, *found]).extremes()] == ["resid_pre"]


def test_what_is_counted() -> None:
    """Free and failed cells, each once."""
    failed = SweepCell(hook="mlp_out", layer=0, position=0, error="no number")
    state = fold([STARTED, cell(0, 0, 0.0, free=True), failed, failed])
    assert (state.free, state.failed, len(state.cells)) == (1, 1, 2)


# -- the scale -------------------------------------------------------------------------------------


def test_the_scale_goes_from_the_unpatched_to_the_clean_prompt() -> None:
    """In the metric's own direction, and not beyond one."""
    started = msgspec.structs.replace(STARTED, unpatched=-6.0, restored=-2.0)
    scale = scale_of(fold([started]))
    assert [scale.level(value) for value in (-6.0, -4.0, -2.0, 9.0, -7.0)] == [0, 0.5, 1, 1, -0.25]
    assert scale.measured
    falling = scale_of(fold([msgspec.structs.replace(STARTED, unpatched=3.0, restored=0.0)]))
    assert falling.level(0.0) == 1


def test_without_a_clean_prompt_the_furthest_value_is_one() -> None:
    """So it is where the clean prompt is no different, and where less is better it is below."""
    for restored in (None, 2.0, math.nan):
        started = msgspec.structs.replace(STARTED, unpatched=2.0, restored=restored)
        scale = scale_of(fold([started, cell(0, 0, 1.0), cell(0, 1, 6.0)]))
        assert not scale.measured
        assert [scale.level(value) for value in (2.0, 4.0, 6.0, 0.0)] == [0, 0.5, 1, -0.5]
    lower = msgspec.structs.replace(STARTED, unpatched=2.0, restored=None, lower_is_better=True)
    assert scale_of(fold([lower, cell(0, 0, 1.0)])).level(1.0) == 1


def test_a_scale_may_be_as_wide_as_floats_are() -> None:
    """The middle between two huge values is in the middle."""
    scale = scale_of(fold([msgspec.structs.replace(STARTED, unpatched=-1.7e308, restored=1.7e308)]))
    assert scale.level(0.0) == 0.5


@given(values, values, st.lists(cells, max_size=8), values)
def test_a_level_is_within_one(
    unpatched: float | None, restored: float | None, found: list[SweepCell], value: float | None
) -> None:
    """Whatever the values are: a number within -1 and 1, or none where the value is none."""
    started = msgspec.structs.replace(STARTED, unpatched=unpatched, restored=restored)
    level = scale_of(fold([started, *found])).level(value)
    if value is None or math.isnan(value):
        assert level is None
    else:
        assert level is not None
        assert -1 <= level <= 1


# -- the file --------------------------------------------------------------------------------------


@given(sweeps, st.lists(st.integers(0, 100), max_size=4))
def test_a_replay_is_what_was_streamed(events: list[SweepEvent], places: list[int]) -> None:
    """A reader that follows while the sweep is written, and one that comes afterwards, agree."""
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory.at(directory)
        streamed = [event for event in events if isinstance(event, SweepCell)]
        with SweepLog(run, STARTED) as log:
            reader = SweepReader(run, run.sweeps()[0])
            followed = reader.poll()
            assert followed == [log.started]
            for batch in cut([*streamed], places):
                log.append(one for one in batch if isinstance(one, SweepCell))
                followed += reader.poll()
            log.end(SweepEnded(status="finished", noise_floor=0.5))
        followed += reader.poll()
        replayed = read_sweep(run, log.sweep)
        assert replayed is not None
        assert repr(followed[1:-1]) == repr(streamed)
        assert plain(fold(followed)) == plain(replayed.grids) == plain(reader.grids)
        assert (reader.skipped, reader.lines) == (0, len(streamed) + 2)
        assert replayed.status() == "finished"


@given(st.data())
def test_every_prefix_of_the_file_is_a_prefix_of_the_sweep(data: st.DataObject) -> None:
    """A torn last line is not read; what stands before it is, in order."""
    events = data.draw(sweeps)
    content = b"".join(map(codec.encode, events))
    size = data.draw(st.integers(0, len(content)))
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory.at(directory)
        run.sweeps_path.mkdir()
        file = run.sweep_file(1)
        file.path.write_bytes(content[:size])
        reader = SweepReader(run, file)
        found = reader.poll()
        assert repr(found) == repr(events[: content[:size].count(b"\n")])
        assert reader.skipped == 0
        file.path.write_bytes(content)
        found += reader.poll()
        assert repr(found) == repr(events)


def test_unknown_fields_and_lines_are_passed_over(tmp_path: Path) -> None:
    """A later version's fields and kinds are no trouble; what is no event is counted."""
    run = RunDirectory.at(tmp_path)
    with SweepLog(run, STARTED) as log:
        log.append([cell(0, 0, 0.25)])
    lines = [
        b'{"type":"cell","hook":"resid_pre","layer":2,"position":1,"value":1,"later":[1]}',
        b'{"type":"preview","later":true}',
        b'{"type":"cell","hook":"resid_pre","layer":"two","position":1}',
        b"\xff\x00 no json",
        b"[]",
        b"",
    ]
    with (tmp_path / "sweeps" / "00001.jsonl").open("ab") as file:
        file.write(b"\n".join(lines) + b"\n")
    reader = read_sweep(run, "00001")
    assert reader is not None
    assert {key[1]: found.value for key, found in reader.grids.cells.items()} == {0: 0.25, 2: 1.0}
    assert reader.skipped == 4
    with pytest.raises(MalformedEventError, match="layer"):
        decode_sweep_event(lines[2])


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    """Nothing of the file that stood there before is left in the grids."""
    run = RunDirectory.at(tmp_path)
    with SweepLog(run, STARTED) as log:
        log.append([cell(0, 0, 0.25)])
    file = run.sweeps()[0]
    reader = SweepReader(run, file)
    reader.poll()
    other = msgspec.structs.replace(STARTED, model="another")
    file.path.write_bytes(codec.encode(other) + codec.encode(cell(3, 2, 1.0)))
    assert reader.poll() == [other, cell(3, 2, 1.0)]
    assert list(reader.grids.cells) == [("resid_pre", 3, 2, 0)]


def test_sweeps_are_numbered_as_they_begin(tmp_path: Path) -> None:
    """Each has a file of its own, also while another is written; other names are no sweeps."""
    run = RunDirectory.at(tmp_path / "run")
    assert run.sweeps() == []
    with SweepLog(run, STARTED) as first, SweepLog(run, STARTED) as second:
        assert (first.sweep, second.sweep) == ("00001", "00002")
        run.sweep_file(7).path.touch()
    for name in ("notes.txt", "progress.jsonl", "000012.jsonl", "00003.jsonl.bak"):
        (run.sweeps_path / name).touch()
    with SweepLog(run, STARTED) as third:
        assert third.sweep == "00008"
    assert [file.sweep for file in run.sweeps()] == ["00001", "00002", "00007", "00008"]
    assert read_sweep(run, "../00001") is None


def test_the_lines_are_plain_json(tmp_path: Path) -> None:
    """Any program can read them: a line for each cell, with what it says in keys of its own."""
    with SweepLog(RunDirectory.at(tmp_path), STARTED) as log:
        log.append([cell(0, 1, 0.5), cell(0, 2, math.nan)])
        log.end(SweepEnded(status="finished", noise_floor=1e-6))
    lines = (tmp_path / "sweeps/00001.jsonl").read_text().splitlines()
    start, first, second, end = map(json.loads, lines)
    assert (start["type"], start["sweep"], start["pid"]) == ("start", "00001", os.getpid())
    assert first == {
        "type": "cell", "hook": "resid_pre", "layer": 0, "position": 1, "value": 0.5,
    }  # fmt: skip
    assert second["value"] == "NaN"
    assert end["best"] == [{"hook": "resid_pre", "layer": 0, "position": 1, "value": 0.5}]
    assert (end["type"], end["status"], end["cells"]) == ("end", "finished", 2)


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "cancelled"),
        (ValueError("out of memory"), "failed"),
        (KeyboardInterrupt, "cancelled"),
    ],
)
def test_a_sweep_that_is_left_says_so(
    tmp_path: Path, error: BaseException | type[BaseException] | None, status: SweepStatus
) -> None:
    """An error fails it, an interruption cancels it, and either passes on."""
    run = RunDirectory.at(tmp_path)
    try:
        with SweepLog(run, STARTED) as log:
            log.append([cell(0, 0, 0.5)])
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error is not None
    reader = read_sweep(run, "00001")
    assert reader is not None
    assert reader.status() == status
    assert reader.grids.ended is not None
    assert reader.grids.ended.reason == ("out of memory" if status == "failed" else None)
    assert log.end(SweepEnded(status="finished")).status == status
    with pytest.raises(SinkClosedError, match="has ended"):
        log.append([cell(0, 0, 0.5)])


def test_a_sweep_that_is_written_is_running(tmp_path: Path) -> None:
    """Its process holds its file; however long it is silent, it goes on."""
    run = RunDirectory.at(tmp_path)
    clock = ManualClock()
    with SweepLog(run, STARTED):
        reader = SweepReader(run, run.sweeps()[0], clock=clock)
        reader.poll()
        clock.advance(1e9)
        assert reader.status() == "running"


def test_a_held_file_is_a_proof_where_the_process_cannot_be_seen(tmp_path: Path) -> None:
    """A container has its own processes; the lock of the file is told to all that share it."""
    run = RunDirectory.at(tmp_path)
    clock = ManualClock()
    with SweepLog(run, STARTED) as log:
        assert log.started.host
        path = run.sweeps()[0].path
        elsewhere = path.read_bytes().replace(log.started.host.encode(), b"elsewhere")
        path.write_bytes(elsewhere)
        reader = SweepReader(run, run.sweeps()[0], clock=clock)
        reader.poll()
        clock.advance(1e10)
        assert reader.status() == "running"
    path.write_bytes(elsewhere)
    reader.poll()
    assert reader.status() == "silent"


def test_a_sweep_whose_process_was_killed_died(tmp_path: Path) -> None:
    """It left no end, nothing holds its file, and its process is gone: that is a proof."""
    code = (
        "import sys, msgspec\n"
        "from aegir_stream.layout import RunDirectory\n"
        "from aegir_stream.sweep_events import SweepStarted, SweepCell\n"
        "from aegir_stream.sweep_log import SweepLog\n"
        "started = msgspec.json.decode(sys.argv[2], type=SweepStarted)\n"
        "log = SweepLog(RunDirectory.at(sys.argv[1]), started)\n"
        "log.append([SweepCell(hook='resid_pre', layer=0, position=0, value=0.5)])\n"
        "print('written', flush=True)\n"
        "sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), msgspec.json.encode(STARTED).decode()]
    run = RunDirectory.at(tmp_path)
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        reader = read_sweep(run, "00001")
        assert reader is not None
        assert reader.status() == "running"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert reader.status() == "died"
    assert len(reader.grids.cells) == 1


def test_a_sweep_of_another_host_falls_silent(tmp_path: Path) -> None:
    """Where nothing can be proved, a sweep runs while it is fresh, and is silent afterwards."""
    run = RunDirectory.at(tmp_path)
    run.sweeps_path.mkdir()
    file = run.sweep_file(1)
    file.path.write_bytes(codec.encode(msgspec.structs.replace(STARTED, host="elsewhere", pid=1)))
    clock = ManualClock(now=file.path.stat().st_mtime)
    reader = SweepReader(run, file, clock=clock)
    reader.poll()
    assert reader.status() == "running"
    clock.advance(601)
    assert reader.status() == "silent"


def test_a_sweep_without_a_run_is_kept_in_memory() -> None:
    """It has grids and an end as any other, and no name."""
    with SweepLog(None, STARTED) as log:
        assert log.append([cell(2, 1, 0.5)])
    assert log.sweep == ""
    assert log.grids.started == log.started
    assert log.grids.ended is not None
    assert [best.value for best in log.grids.ended.best] == [0.5]


# -- the run around it -----------------------------------------------------------------------------


def test_what_a_full_disk_refused_is_written_later(tmp_path: Path) -> None:
    """No cell is lost when there is room again, and a line that was cut is completed."""
    disk = FullDisk(b'{"type":"cell"', after=20)
    run = RunDirectory.at(tmp_path)
    with SweepLog(on(disk, run), STARTED) as log:
        assert not log.append([cell(0, 0, 0.5)])
        assert not log.append([cell(0, 1, 0.25)])
        disk.mend()
        assert log.append([cell(0, 2, 0.75)])
        log.end(SweepEnded(status="finished"))
    reader = read_sweep(run, "00001")
    assert reader is not None
    assert [found.value for found in reader.grids.cells.values()] == [0.5, 0.25, 0.75]
    assert (reader.skipped, reader.status()) == (0, "finished")


def test_an_end_that_cannot_be_written_frees_the_file(tmp_path: Path) -> None:
    """The error is told, nothing holds the file, and readers see a sweep without an end."""
    disk = FullDisk(b'{"type":"end"')
    run = RunDirectory.at(tmp_path)
    log = SweepLog(on(disk, run), STARTED)
    with pytest.raises(OSError, match="No space left") as caught:
        log.end(SweepEnded(status="finished"))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert not run.disk.is_leased(run.sweeps()[0].path)


def test_a_sweep_leaves_the_run_as_it_is() -> None:
    """Beside a trainer that writes: no lane, lease, attempt, checkpoint or check is different."""
    with lived([("step", 3), ("save", 0), ("step", 2)]) as life:
        run = life.run

        def seen() -> object:
            manifest = run.read_manifest()
            found = verify(run)
            damage = list(found)
            lanes = run.lanes("sae_features")
            setups = Catalog(run.root).setups()
            runs = [one.root for setup in setups for one in setup.runs]
            return manifest, damage, found.files, lanes, lease_of(run), runs, run.checkpoints()

        before = seen()
        with SweepLog(run, STARTED) as log:
            log.append([cell(0, 0, 0.5)])
            assert seen() == before
            life.record_step(2)
            life.save()
        assert len(run.sweeps()) == 1
        life.kill()
        life.resume("checkpoint-1")
        assert [file.sweep for file in run.sweeps()] == ["00001"]
