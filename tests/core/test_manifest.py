from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from aegir_stream import codec
from aegir_stream.disk import Disk
from aegir_stream.layout import RunDirectory
from aegir_stream.manifest import look_at_manifest
from aegir_stream.recorder import Recorder
from aegir_stream.replay import read_events
from aegir_stream.sinks import JournalSink
from aegir_stream.testing import make_append, make_record
from core.runs import Life, drive, on

damaged = pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"run_id": "abc',
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"run_id": "\xff"}',
        bytes(300),
        b'{"run_id": 7}',
        b'{"run_id": "abc", "attempts": {"attempt": 1}}',
        b'{"run_id": "abc", "attempts": [7]}',
    ],
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.at(tmp_path / "run")


@damaged
def test_a_damaged_manifest_does_not_stop_a_new_attempt(run: RunDirectory, content: bytes) -> None:
    """It is kept beside the new one, which names the same log; records are written as ever."""
    life = Life(run)
    life.record_step()
    life.save()
    log = run.read_manifest()["run_id"]
    life.kill()
    run.manifest_path.write_bytes(content)
    life.resume("checkpoint-1")
    life.record_step()
    life.finish()

    assert (run.root / "aegir_run.json.damaged-1").read_bytes() == content
    manifest = run.read_manifest()
    assert manifest["run_id"] == log
    assert [entry["attempt"] for entry in manifest["attempts"]] == [2]
    assert [*read_events(run, "sae_features")] == life.surviving


@damaged
def test_a_damaged_manifest_of_a_run_without_a_log_is_replaced(
    run: RunDirectory, content: bytes
) -> None:
    """Where no segment tells the log's identity a new one begins."""
    run.root.mkdir()
    run.manifest_path.write_bytes(content)
    sink = JournalSink(run)
    drive(sink.open())
    drive(sink.write(make_append(make_record())))
    drive(sink.aclose())

    opening = codec.decode_opening(run.live("sae_features").read_bytes())
    assert opening is not None
    assert opening.log == run.read_manifest()["run_id"]
    assert len(opening.log) == 12


def test_a_manifest_that_is_gone_names_the_same_log_again(run: RunDirectory) -> None:
    """So it is after a crash between putting a damaged one aside and writing the new one."""
    life = Life(run)
    life.record_step()
    life.save()
    log = run.read_manifest()["run_id"]
    life.kill()
    run.set_manifest_aside()
    life.resume("checkpoint-1")
    life.finish()

    assert run.read_manifest()["run_id"] == log


def test_every_damaged_manifest_is_kept(run: RunDirectory) -> None:
    """None takes the place of an earlier one."""
    for number in (1, 2, 3):
        run.root.mkdir(exist_ok=True)
        run.manifest_path.write_bytes(b"%d damaged" % number)
        sink = JournalSink(run)
        drive(sink.open())
        drive(sink.aclose())

    kept = sorted(run.root.glob("aegir_run.json.damaged-*"))
    assert [path.read_bytes() for path in kept] == [b"1 damaged", b"2 damaged", b"3 damaged"]


def test_a_manifest_that_is_damaged_before_the_attempt_stands_in_it(run: RunDirectory) -> None:
    """The flush that lists the attempt mends it first."""

    class Stubborn(Disk):
        broken = True

        def write(self, path: Path, content: bytes) -> None:
            if self.broken:
                raise OSError(28, "No space left on device")
            super().write(path, content)

    disk = Stubborn()
    sink = JournalSink(on(disk, run))
    drive(sink.open())
    log = run.read_manifest()["run_id"]
    run.manifest_path.write_bytes(b"damaged")
    disk.broken = False
    drive(sink.flush())

    manifest = run.read_manifest()
    assert (manifest["run_id"], len(manifest["attempts"])) == (log, 1)
    drive(sink.aclose())


def test_a_manifest_that_names_no_run_gets_a_name(run: RunDirectory) -> None:
    """What stands in it stays."""
    run.root.mkdir()
    run.write_manifest({"model": "tiny"})
    sink = JournalSink(run)
    drive(sink.open())
    drive(sink.aclose())

    manifest = run.read_manifest()
    assert manifest["model"] == "tiny"
    assert len(manifest["run_id"]) == 12
    assert not [*run.root.glob("*.damaged-*")]


@damaged
def test_who_only_looks_is_not_stopped(run: RunDirectory, content: bytes) -> None:
    """A damaged manifest says nothing, and nothing is changed by looking."""
    run.root.mkdir()
    run.manifest_path.write_bytes(content)

    assert look_at_manifest(run) == {}
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        run.read_manifest()
    assert [path.name for path in run.root.iterdir()] == ["aegir_run.json"]


def test_a_recorder_counts_nothing_as_lost_to_a_damaged_manifest(run: RunDirectory) -> None:
    """Mending it is no error."""
    run.root.mkdir()
    run.manifest_path.write_bytes(b"damaged")
    recorder = Recorder(JournalSink(run))

    assert recorder.flush()
    assert recorder.close()
    assert recorder.statistics().errors == 0
