from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from aegir_stream import codec
from aegir_stream.disk import Disk
from aegir_stream.errors import OptionError
from aegir_stream.events import Close, Open
from aegir_stream.layout import RunDirectory
from aegir_stream.lineage import read_header
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.system import System
from aegir_stream.testing import make_append, make_record
from core.runs import FullDisk, Life, drain, drive, on, records_in


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


def test_a_resume_from_a_checkpoint_without_a_seal_keeps_what_is_before_it(
    run: RunDirectory,
) -> None:
    """The chain goes on from the newest seal before the checkpoint, and is not cut."""
    life = Life(on(FullDisk(b'{"$log":"seal","checkpoint":"checkpoint-2"'), run))
    life.record_step()
    life.save()
    life.record_step()
    with pytest.raises(OSError, match="No space"):
        life.save()
    life.kill()
    resumed = JournalSink(run, continues="checkpoint-2")
    drive(resumed.open())

    assert header(run, run.live("sae_features")).previous == 1
    drive(resumed.aclose())


def test_a_checkpoint_that_is_saved_again_keeps_its_snapshot(run: RunDirectory) -> None:
    """Sealing twice with nothing in between answers the same and makes no segment."""
    life = Life(run)
    life.record_step()

    assert life.save() == life.save()
    assert run.snapshot_records(run.checkpoints()[0]) == 3
    assert [file.segment for file in run.history()] == [1]


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
