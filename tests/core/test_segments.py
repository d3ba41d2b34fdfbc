from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import pytest

from aegir_stream import codec
from aegir_stream.disk import Disk
from aegir_stream.errors import OptionError
from aegir_stream.events import Checkpoint, Close, Corrupt, Open, Reset, Seal
from aegir_stream.layout import RunDirectory
from aegir_stream.lineage import read_header, survey
from aegir_stream.replay import read_events
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.system import System
from aegir_stream.testing import Fault, Killed, SimulatedMachine, make_append, make_record
from aegir_stream.verification import verify
from core.runs import FullDisk, Life, drain, drive, on, records_in
from core.simulated import RECORDED, ROOT, SimulatedRun, run_on

T = TypeVar("T")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.at(tmp_path / "run")


def header(run: RunDirectory, path: Path) -> Open:
    """Return the header of a segment."""
    found = read_header(run, path)
    assert found is not None
    return found


def test_a_checkpoint_gets_a_snapshot_and_history_keeps_it(run: RunDirectory) -> None:
    """The sealed segment stands under both names and is one file."""
    life = Life(run)
    life.record_step()
    sealed = life.save()

    snapshot, kept = run.snapshot("checkpoint-1"), run.closed(1, "checkpoint-1")
    assert snapshot.samefile(kept)
    assert not snapshot.samefile(run.live("sae_features"))
    assert sealed is not None
    assert (sealed.records, run.snapshot_records(run.checkpoints()[0])) == (3, 3)


def test_a_segment_names_the_one_it_continues(run: RunDirectory) -> None:
    """Headers chain the segments of an attempt, and a resume to its checkpoint."""
    life = Life(run)
    life.record_step()
    life.save()
    life.record_step()
    life.save()
    life.kill()
    life.resume("checkpoint-1")

    newest = header(run, run.live("sae_features"))
    assert (newest.segment, newest.previous, newest.attempt) == (4, 1, 2)
    assert (newest.continues, newest.continues_step) == ("checkpoint-1", 1)
    assert header(run, run.closed(2, "checkpoint-2")).previous == 1


def test_what_a_resume_rewinds_is_set_aside(run: RunDirectory) -> None:
    """The live tail of the attempt before is kept whole, ended by a mark that says why."""
    life = Life(run)
    life.record_step()
    life.save()
    life.record_step()
    abandoned = run.live("sae_features").read_bytes()
    life.kill(torn=b'{"step":')
    life.resume("checkpoint-1")

    kept = run.closed(2, "abandoned").read_bytes()
    assert kept.startswith(abandoned + b'{"step":\n')
    assert codec.decode_control(kept.splitlines()[-1]) == Close(status="abandoned")
    assert header(run, run.live("sae_features")).recovered_torn_bytes == 8


def test_nothing_is_ever_truncated(run: RunDirectory) -> None:
    """Whatever a writer does to a file, its earlier content stays a prefix of the later."""
    life = Life(run)
    earlier: dict[int, bytes] = {}
    for deed in ("step", "save", "step", "crash", "step", "save", "crash"):
        if deed == "step":
            life.record_step()
        elif deed == "save":
            life.save()
        else:
            life.kill(torn=b"{")
            life.resume("checkpoint-1")
        for path in [*run.root.rglob("*.jsonl")]:
            inode, content = path.stat().st_ino, path.read_bytes()
            assert content.startswith(earlier.get(inode, b""))
            earlier[inode] = content


def test_a_crash_between_seal_and_links_is_completed(run: RunDirectory) -> None:
    """A segment that was sealed but not yet linked gets its names at the next start."""
    life = Life(run)
    life.record_step()
    (run.root / "checkpoint-1").mkdir()
    chain = life.sink._chain
    assert chain is not None
    chain.writer.seal(checkpoint="checkpoint-1", step=1, segment=1)
    life.saved["checkpoint-1"] = 3
    life.kill()
    life.resume("checkpoint-1")
    life.record_step()

    assert run.closed(1, "checkpoint-1").samefile(run.snapshot("checkpoint-1"))
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


def test_a_seal_that_fails_halfway_is_completed_by_the_next_write(run: RunDirectory) -> None:
    """A disk error while linking loses nothing: the seal is finished before anything is written."""
    life = Life(run)
    life.record_step()
    broken = OSError(errno.EIO, "Input/output error")
    with patch.object(Disk, "share", side_effect=broken), pytest.raises(OSError, match="Input"):
        life.save()
    life.record_step()

    assert run.snapshot("checkpoint-1").samefile(run.closed(1, "checkpoint-1"))
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


@pytest.mark.parametrize("after", [0, 10])
def test_a_seal_that_a_full_disk_stopped_is_written_before_anything_else(
    run: RunDirectory, after: int
) -> None:
    """Whether none or a part of the seal's line was written, later records are not behind it."""
    disk = FullDisk(b'{"$log":"seal"', after=after)
    life = Life(on(disk, run))
    life.record_step()
    with pytest.raises(OSError, match="No space"):
        life.save()
    disk.mend()
    life.record_step()

    assert run.snapshot("checkpoint-1").samefile(run.closed(1, "checkpoint-1"))
    assert run.snapshot_records(run.checkpoints()[0]) == 3
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


# -- a checkpoint that was saved and not sealed ----------------------------------------------------


def unsealed(run: RunDirectory, *, torn: bytes = b"", control_lines: bool = True) -> Life:
    """Return a run that was killed after its trainer had saved checkpoint-3, before the seal."""
    life = Life(run, control_lines=control_lines)
    life.record_step()
    life.save()
    life.record_step()
    life.record_step()
    life.save_unsealed()
    life.kill(torn=torn)
    return life


@pytest.mark.parametrize("torn", [b"", b'{"step":3,"tok', b'{"$log":"seal","checkp'])
def test_a_kill_before_the_seal_leaves_what_the_checkpoint_is_resumed_with(
    run: RunDirectory, torn: bytes
) -> None:
    """The next attempt seals it in its place, and what it held survives."""
    life = unsealed(run, torn=torn)
    life.resume("checkpoint-3")
    life.record_step()

    assert [(f.segment, f.label) for f in run.history()] == [
        (1, "checkpoint-1"),
        (2, "checkpoint-3"),
    ]
    assert run.snapshot("checkpoint-3").samefile(run.closed(2, "checkpoint-3"))
    data = [line + b"\n" for line in run.closed(2, "checkpoint-3").read_bytes().splitlines()]
    data = [line for line in data if line.startswith(b'{"step"') and line != torn + b"\n"]
    assert run.seal_of(run.snapshot("checkpoint-3")) == Seal(
        checkpoint="checkpoint-3",
        step=3,
        segment=2,
        records=6,
        bytes=sum(map(len, data)),
        crc32=zlib.crc32(b"".join(data)),
    )
    newest = header(run, run.live("sae_features"))
    assert (newest.segment, newest.previous, newest.continues) == (3, 2, "checkpoint-3")
    assert [*read_events(run, "sae_features")] == life.surviving
    assert not [damage for damage in verify(run) if damage.kind == "damaged"]
    assert [checkpoint.step for checkpoint in told(run, Checkpoint)] == [1, 3]


def told(run: RunDirectory, kind: type[T]) -> list[T]:
    """Return what a reader of everything is told."""
    source = RunSource(run, start="start", attempts="all")
    return [each for each in drain(source) if isinstance(each, kind)]


def test_a_checkpoint_that_the_next_attempt_sealed_is_not_sealed_again(run: RunDirectory) -> None:
    """Saving it again before the first step answers as that seal did."""
    life = unsealed(run)
    life.resume("checkpoint-3")
    sealed = life.save()

    assert sealed is not None
    assert (sealed.segment, sealed.records) == (2, 6)


@pytest.mark.parametrize("read_bytes", [64, 256 << 10])
def test_a_seal_that_is_owed_is_paid_behind_a_closing_mark(
    run: RunDirectory, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped between saving and sealing closes its log on the way out.

    Readers find the seal behind the mark, in whatever pieces they read.
    """
    monkeypatch.setattr("aegir_stream.tail._READ_BYTES", read_bytes)
    life = Life(run)
    life.record_step()
    checkpoint = life.save_unsealed()
    life.finish()
    life.resume(checkpoint)
    life.record_step()

    assert [*read_events(run, "sae_features")] == life.surviving
    assert [checkpoint.step for checkpoint in told(run, Checkpoint)] == [1]


def test_a_follower_of_a_tail_that_is_sealed_later_sees_nothing_twice(run: RunDirectory) -> None:
    """It goes on behind the seal as if the writer itself had sealed."""
    life = Life(run)
    life.record_step()
    checkpoint = life.save_unsealed()
    follower = RunSource(run, start="start")
    deliveries = drain(follower)
    life.kill()
    life.resume(checkpoint)
    life.record_step()
    deliveries += drain(follower)

    assert records_in(deliveries) == life.surviving
    assert not [each for each in deliveries if isinstance(each, Reset | Corrupt)]


def test_without_control_lines_what_is_owed_gets_its_name(run: RunDirectory) -> None:
    """There is no seal to write, but the snapshot appears and no record is called abandoned."""
    life = unsealed(run, torn=b'{"step":', control_lines=False)
    before = run.live("sae_features").read_bytes()
    life.resume("checkpoint-3")

    labels = [(file.segment, file.label) for file in run.history()]
    assert labels == [(1, "checkpoint-1"), (2, "checkpoint-3")]
    assert run.snapshot("checkpoint-3").samefile(run.closed(2, "checkpoint-3"))
    assert run.snapshot("checkpoint-3").read_bytes() == before + b"\n"


def test_what_was_left_after_a_failed_sync_survives_with_the_next(run: RunDirectory) -> None:
    """A kill right after a segment was left for the next one does not cost its records."""
    life = Life(run)
    life.record_step()
    checkpoint = life.save_unsealed()
    chain = life.sink._chain
    assert chain is not None
    chain._leave()
    life.kill()
    life.resume(checkpoint)
    life.record_step()

    assert [file.label for file in run.history()] == ["unsynced", "checkpoint-1"]
    assert [*read_events(run, "sae_features")] == life.surviving


@pytest.mark.parametrize("label", ["unsynced", "abandoned"])
def test_a_segment_that_was_kept_as_something_else_gets_the_name_of_its_seal(
    run: RunDirectory, label: str
) -> None:
    """A crash came between keeping it and beginning the next: it is kept once."""
    life = Life(run)
    life.record_step()
    checkpoint = life.save_unsealed()
    chain = life.sink._chain
    assert chain is not None
    chain._keep(1, label)
    life.kill()
    life.resume(checkpoint)

    assert [(f.segment, f.label) for f in run.history()] == [(1, "checkpoint-1")]
    assert [*read_events(run, "sae_features")] == life.surviving


def test_steps_behind_the_checkpoint_are_not_sealed_with_it(run: RunDirectory) -> None:
    """What holds a later step is set aside, and the chain goes on from the seal before."""
    life = unsealed(run)
    life.resume("checkpoint-3")
    life.record_step()
    life.save_unsealed()
    life.record_step()
    life.kill()
    life.resume("checkpoint-4")

    assert header(run, run.live("sae_features")).previous == 2
    assert [file.label for file in run.history()] == ["checkpoint-1", "checkpoint-3", "abandoned"]


def test_a_segment_without_records_is_sealed_as_well(run: RunDirectory) -> None:
    """A checkpoint behind steps that recorded nothing is a checkpoint."""
    life = Life(run)
    life.record_step(0)
    checkpoint = life.save_unsealed()
    life.kill()
    life.resume(checkpoint)
    life.record_step()

    assert [(f.segment, f.label) for f in run.history()] == [(1, "checkpoint-1")]
    assert run.snapshot_records(run.checkpoints()[0]) == 0
    assert [*read_events(run, "sae_features")] == life.surviving


def test_a_tail_that_continues_a_later_checkpoint_is_not_sealed(run: RunDirectory) -> None:
    """Even without a record of its own it leads further than the checkpoint."""
    life = Life(run)
    life.record_step()
    life.save_unsealed()
    life.record_step()
    life.save()
    life.kill()
    life.resume("checkpoint-1")

    assert header(run, run.live("sae_features")).previous is None
    assert [file.label for file in run.history()] == ["checkpoint-2", "abandoned"]


def test_whatever_call_a_kill_hits_while_an_owed_seal_is_paid_the_next_start_pays_it() -> None:
    """Every moment of the recovery leaves something from which it comes to the same result."""
    calls = next(call for call in itertools.count() if not killed_while_paying(call))

    assert calls > 40


def killed_while_paying(call: int) -> bool:
    """Kill the recovery at one of its calls, then let another do it; `False` if it was over."""
    machine = SimulatedMachine()
    run = SimulatedRun(machine)
    run.begin()
    run.take_step()
    run.save()
    run.take_step()
    machine.make_directory(ROOT / "checkpoint-2")
    run.kept["checkpoint-2"] = {stream: len(run.surviving[stream]) for stream in RECORDED}
    run.now.process.kill()
    run.begin("checkpoint-2")
    machine.fail(Fault(first=len(machine.calls) + call, meanwhile=run.now.process.kill))
    with contextlib.suppress(Killed):
        run.now.recorder.flush()
    killed = not run.now.process.alive
    machine.mend()
    run.now.process.kill()
    run.begin("checkpoint-2")
    run.take_step()
    run.close()

    survivors = run.survivors("sae_features")
    assert survivors == run.surviving["sae_features"], f"killed at call {call}"
    labels = [file.label for file in run_on(machine.process()).history()]
    assert labels[:2] == ["checkpoint-1", "checkpoint-2"], f"killed at call {call}"
    return killed


def test_a_damaged_header_does_not_lead_readers_in_a_circle(run: RunDirectory) -> None:
    """A segment can only continue an earlier one."""
    life = Life(run)
    life.record_step()
    life.save()
    life.record_step()
    life.kill()
    live = run.live("sae_features")
    live.write_bytes(live.read_bytes().replace(b'"previous":1', b'"previous":2', 1))

    assert survey(run, stream="sae_features", lane="rank0").surviving(run) == [2]
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving[3:]


def test_a_checkpoint_that_is_saved_again_keeps_its_snapshot(run: RunDirectory) -> None:
    """Sealing twice with nothing in between answers the same and makes no segment."""
    life = Life(run)
    life.record_step()

    assert life.save() == life.save()
    assert run.snapshot_records(run.checkpoints()[0]) == 3
    assert [file.segment for file in run.history()] == [1]


def test_the_checkpoint_that_was_resumed_from_keeps_its_snapshot(run: RunDirectory) -> None:
    """Saving it again before the first step answers as its seal did, and makes no segment."""
    life = Life(run)
    life.record_step()
    sealed = life.save()
    life.kill()
    life.resume("checkpoint-1")

    assert life.save() == sealed
    assert run.snapshot_records(run.checkpoints()[0]) == 3
    labels = [(file.segment, file.label) for file in run.history()]
    assert labels == [(1, "checkpoint-1"), (2, "abandoned")]
    life.record_step()
    life.save()
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


def test_records_behind_a_seal_do_not_replace_its_snapshot(run: RunDirectory) -> None:
    """The same checkpoint is not sealed again with other records, which stay in the live tail."""
    life = Life(run)
    life.record_step()
    life.save()
    drive(life.sink.write(make_append(make_record(step=1, token=9))))

    with pytest.raises(OptionError, match="`checkpoint-1` is sealed with 3 records, and 1 were"):
        life.save()
    assert run.snapshot_records(run.checkpoints()[0]) == 3
    assert len(records_in(drain(RunSource(run, start="start")))) == 4


def test_without_control_lines_what_is_left_gets_a_number_of_its_own(run: RunDirectory) -> None:
    """A segment that was taken away from history does not make the next one overwrite another."""
    life = Life(run, control_lines=False)
    for _ in range(2):
        life.record_step()
        life.save()
    life.record_step()
    run.closed(1, "checkpoint-1").unlink()
    life.kill()
    life.resume("checkpoint-2")

    assert [(f.segment, f.label) for f in run.history()] == [(2, "checkpoint-2"), (3, "abandoned")]


def test_without_control_lines_a_segment_is_kept_once(run: RunDirectory) -> None:
    """A crash between keeping a segment and starting the next does not double its records."""
    life = Life(run, control_lines=False)
    life.record_step()
    chain = life.sink._chain
    assert chain is not None
    chain._keep(1, "checkpoint-1")
    life.saved["checkpoint-1"] = 3
    life.kill()
    life.resume("checkpoint-1")

    assert [(file.segment, file.label) for file in run.history()] == [(1, "checkpoint-1")]
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


def test_two_hosts_do_not_share_a_temporary_name(run: RunDirectory, tmp_path: Path) -> None:
    """Creating a file whole is decided by one of two processes, even of the same number."""
    path = tmp_path / "manifest"
    created: list[bool] = []

    class Slow(System):
        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            created.append(Disk().create(path, b"second"))

    assert Disk(Slow()).create(path, b"first")
    assert (created, path.read_bytes()) == ([False], b"first")
    assert sorted(tmp_path.iterdir()) == [path]


def test_without_hard_links_segments_are_copied(run: RunDirectory) -> None:
    """A file system that refuses links gets synced copies with the same content."""

    class Linkless(System):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    life = Life(on(Disk(Linkless()), run))
    life.record_step()
    life.save()
    life.record_step()

    snapshot, kept = run.snapshot("checkpoint-1"), run.closed(1, "checkpoint-1")
    assert not snapshot.samefile(kept)
    assert snapshot.read_bytes() == kept.read_bytes()
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


def test_feeds_say_where_an_attempt_begins(run: RunDirectory) -> None:
    """A stream that checkpoints do not seal is one file; each attempt opens it again."""
    for attempt in (1, 2):
        sink = JournalSink(run, continues="checkpoint-5" if attempt == 2 else None)
        drive(sink.open())
        drive(sink.write(make_append(make_record(), stream="completions")))
        drive(sink.aclose())

    lines = run.live("completions").read_bytes().splitlines()
    openings = [e for e in map(codec.decode_control, lines) if isinstance(e, Open)]
    assert [o.attempt for o in openings] == [1, 2]
    assert [o.continues_step for o in openings] == [None, 5]


def test_the_progress_feed_holds_nothing_but_rows(run: RunDirectory) -> None:
    """Other programs append to this feed, so no control line is put into it."""
    sink = JournalSink(run)
    drive(sink.open())
    drive(sink.write(make_append(make_record(), stream="progress")))
    drive(sink.aclose())

    assert b"$log" not in run.live("progress").read_bytes()


def test_a_killed_writer_leaves_its_lane_free(run: RunDirectory) -> None:
    """The lock of a process that SIGKILL ended does not keep its successor from the file."""
    program = (
        "import os, signal, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from core.runs import Life\n"
        "from aegir_stream.layout import RunDirectory\n"
        "life = Life(RunDirectory.at(sys.argv[1]))\n"
        "life.record_step(5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    tests = str(Path(__file__).parent.parent)
    killed = subprocess.run([sys.executable, "-c", program, str(run.root), tests], check=False)
    assert killed.returncode == -9

    life = Life(run)
    life.record_step(1)

    assert run.lanes("sae_features") == ["rank0"]
    assert len(records_in(drain(RunSource(run, start="start", attempts="all")))) == 6
    assert len(records_in(drain(RunSource(run, start="start")))) == 1


def test_a_run_copied_without_history_is_continued_from_its_checkpoint(run: RunDirectory) -> None:
    """Where only the checkpoint holds the segment that a resume continues, it is found there."""
    life = Life(run)
    life.record_step()
    life.save()
    life.record_step()
    life.kill()
    shutil.rmtree(run.history_path)
    life.resume("checkpoint-1")
    life.record_step()

    assert records_in(drain(RunSource(run, start="start"))) == life.surviving
