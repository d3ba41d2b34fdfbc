from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.chunk import Chunk
from aegir_stream.errors import OptionError, RunExistsError
from aegir_stream.events import Batch, Gap, Seal
from aegir_stream.layout import RunDirectory
from aegir_stream.repair import Repaired, repair
from aegir_stream.source import Level, RunSource
from aegir_stream.verification import verify
from core.damaging import Harm, damaged, feed, harms, lives, segment_files
from core.runs import Life, deeds, drain, lived, records_in


class Trace(NamedTuple):
    """What must not change about a file."""

    inode: int
    changed_at: int
    links: int
    content: bytes


def traces(root: Path) -> dict[Path, Trace]:
    """Return what must not change about the files below a directory."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        path: Trace(status.st_ino, status.st_mtime_ns, status.st_nlink, path.read_bytes())
        for path in files
        for status in [path.stat()]
    }


def read(run: RunDirectory, level: Level = "live", *, stream: str = "sae_features") -> list[bytes]:
    """Return the records of all attempts."""
    source = RunSource(run, stream, start="start", attempts="all", level=level)
    return [record for d in drain(source) if isinstance(d, Chunk) for record in d.records]


@settings(max_examples=100, deadline=None)
@given(deeds, st.integers(0, 20), harms)
def test_a_copy_is_clean_and_holds_what_can_be_trusted(
    script: list[tuple[str, int]], file: int, harm: Harm
) -> None:
    """After any damage, the copy passes, and holds at least what a committed reader gets."""
    with lived([*script, ("step", 2), ("step", 1)]) as life:
        files = segment_files(life.run)
        path = files[file % len(files)]
        written = read(life.run)
        content = path.read_bytes()
        path.write_bytes(damaged(content, harm))
        before = traces(life.run.root)
        to = life.run.root.with_name(life.run.root.name + "-clean")

        try:
            repaired = repair(life.run, to=to)
            copy = RunDirectory.at(to)

            assert list(verify(copy)) == []
            assert traces(life.run.root) == before
            kept = read(copy)
            assert kept == read(copy, "committed")
            assert set(read(life.run, "committed")) <= set(kept) <= set(written)
            assert len(kept) == len(set(kept)) == repaired.records
        finally:
            shutil.rmtree(to, ignore_errors=True)


@settings(max_examples=40, deadline=None)
@given(lives, harms)
def test_a_damaged_feed_is_copied_as_far_as_it_can_be_trusted(
    attempts: list[tuple[list[int], bytes]], harm: Harm
) -> None:
    """Feeds to which several attempts append are mended as segments are."""
    with lived() as life:
        feed(life.run, [*attempts, ([2, 1], b"")])
        path = life.run.live("grpo_metrics")
        path.write_bytes(damaged(path.read_bytes(), harm))
        to = life.run.root.with_name(life.run.root.name + "-clean")
        try:
            repair(life.run, to=to)
            copy = RunDirectory.at(to)

            assert list(verify(copy)) == []
            kept = read(copy, stream="grpo_metrics")
            assert kept == read(copy, "committed", stream="grpo_metrics")
            assert set(read(life.run, "committed", stream="grpo_metrics")) <= set(kept)
        finally:
            shutil.rmtree(to, ignore_errors=True)


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run with a checkpoint, a sidecar and a live tail."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    life.record_step()
    life.save()
    life.run.write_metadata("checkpoint-2", {"step": 2})
    life.record_step()
    return life


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """Where a copy goes."""
    return tmp_path / "clean"


def gaps(path: Path) -> list[Gap]:
    """Return the gaps in a file."""
    events = map(codec.decode_control, path.read_bytes().splitlines())
    return [event for event in events if isinstance(event, Gap)]


def test_what_is_whole_is_copied_byte_for_byte(life: Life, to: Path) -> None:
    """Without damage the copy holds the same bytes under the same names, and nothing else."""
    (life.run.root / "checkpoint-2" / "model.safetensors").write_bytes(b"weights")

    assert repair(life.run, to=to) == Repaired(files=2, mended=0, records=9)

    originals = {p.relative_to(life.run.root): t for p, t in traces(life.run.root).items()}
    copies = {p.relative_to(to): t for p, t in traces(to).items()}
    weights = Path("checkpoint-2/model.safetensors")
    assert copies.keys() == originals.keys() - {weights}
    for name, trace in copies.items():
        assert trace.content == originals[name].content
        assert trace.inode != originals[name].inode


def test_a_damaged_append_becomes_a_gap_and_the_seal_counts_the_rest(life: Life, to: Path) -> None:
    """The others keep their bytes; snapshot and history are one file again."""
    closed = life.run.history()[0].path
    content = closed.read_bytes()
    begin = content.index(b'{"step":2')
    end = content.index(b"\n", content.index(b'"batch"', begin)) + 1
    closed.write_bytes(content.replace(b'{"step":2,"token_index":1', b'{"step":2,"token_index":7'))

    assert repair(life.run, to=to) == Repaired(files=2, mended=1, records=6)

    copy = RunDirectory.at(to)
    history, snapshot = copy.history()[0].path, copy.snapshot("checkpoint-2")
    assert history.samefile(snapshot)
    [gap] = gaps(history)
    assert gap.records == 3
    assert gap.reason == (
        f"left out by aegir repair: {end - begin} bytes at offset {begin} of {closed.name}: "
        "these bytes do not agree with their checksum"
    )
    assert history.read_bytes().startswith(content[:begin])
    seal = copy.seal_of(history)
    assert isinstance(seal, Seal)
    assert (seal.records, seal.checkpoint, seal.step, seal.segment) == (3, "checkpoint-2", 2, 1)
    assert records_in(drain(RunSource(copy, start="start"))) == (
        life.surviving[:3] + life.surviving[6:]
    )


def test_whole_lines_that_a_kill_left_get_a_trailer(life: Life, to: Path) -> None:
    """They are kept, and the unfinished line behind them becomes a gap."""
    live = life.run.live("sae_features")
    life.kill()
    content = live.read_bytes()
    cut = content.rindex(b'{"$log":"batch"')
    live.write_bytes(content[:cut] + b'{"step":3,"token_i')

    assert repair(life.run, to=to).mended == 1

    copy = RunDirectory.at(to)
    assert read(copy, "committed") == read(life.run)
    [gap] = gaps(copy.live("sae_features"))
    assert gap.records == 1
    lines = copy.live("sae_features").read_bytes().splitlines()
    trailer = codec.decode_control(lines[-2])
    assert isinstance(trailer, Batch)
    assert (trailer.records, trailer.step, trailer.attempt) == (3, 3, 1)


def test_a_seal_that_was_cut_off_is_written_again(life: Life, to: Path) -> None:
    """A closed segment without its end gets one that counts what is left."""
    closed = life.run.history()[0].path
    content = closed.read_bytes()
    closed.write_bytes(content[: content.index(b'{"step":2')])

    repair(life.run, to=to)

    copy = RunDirectory.at(to)
    seal = copy.seal_of(copy.snapshot("checkpoint-2"))
    assert isinstance(seal, Seal)
    assert (seal.records, seal.checkpoint, seal.step, seal.segment) == (3, "checkpoint-2", 2, 1)


def test_a_damaged_manifest_is_written_again_and_a_damaged_sidecar_left_out(
    life: Life, to: Path
) -> None:
    """The new manifest names the log as the segments do, so that cursors stay good."""
    log = life.run.read_manifest()["run_id"]
    life.run.manifest_path.write_bytes(b"{")
    (life.run.root / "checkpoint-2" / "aegir_metadata.json").write_bytes(b"\x00")

    repair(life.run, to=to)

    copy = RunDirectory.at(to)
    assert copy.read_manifest()["run_id"] == log
    assert not (to / "checkpoint-2" / "aegir_metadata.json").exists()
    assert list(verify(copy)) == []


def test_files_without_control_lines_get_none(tmp_path: Path, to: Path) -> None:
    """Lines that are no records are left out of them without a word."""
    life = Life(RunDirectory.at(tmp_path / "run"), control_lines=False)
    life.record_step()
    life.save()
    life.record_step()
    closed = life.run.history()[0].path
    content = closed.read_bytes()
    closed.write_bytes(b"\x00" + content)

    repair(life.run, to=to)

    copy = RunDirectory.at(to)
    assert copy.history()[0].path.read_bytes() == content.split(b"\n", 1)[1]
    assert copy.live("sae_features").read_bytes() == life.run.live("sae_features").read_bytes()


def test_a_copy_can_be_written_on(life: Life, to: Path) -> None:
    """A run is resumed from its repaired copy as from itself."""
    life.kill(torn=b'{"st')
    repair(life.run, to=to)
    moved = Life.__new__(Life)
    moved.__dict__.update(life.__dict__)
    moved.run = RunDirectory.at(to)

    moved.resume("checkpoint-2")
    moved.record_step()

    assert records_in(drain(RunSource(moved.run, start="start"))) == moved.surviving


def test_nothing_is_written_where_something_is(life: Life, to: Path) -> None:
    """A copy goes into a fresh directory, and never into the run."""
    to.mkdir()
    (to / "notes.txt").write_text("mine")
    with pytest.raises(RunExistsError, match=r"clean.*another"):
        repair(life.run, to=to)
    (to / "notes.txt").unlink()
    repair(life.run, to=to)

    file = to.with_name("file")
    file.touch()
    with pytest.raises(RunExistsError, match="file"):
        repair(life.run, to=file)
    before = traces(life.run.root)
    for inside in (life.run.root, life.run.root / "clean", life.run.root / "x" / ".." / "clean"):
        with pytest.raises(OptionError, match="outside of the run"):
            repair(life.run, to=inside)
    assert traces(life.run.root) == before
