from __future__ import annotations

import itertools
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.disk import Disk, Reading
from aegir_stream.errors import RunNotFoundError
from aegir_stream.inventory import Content
from aegir_stream.layout import RunDirectory
from aegir_stream.testing import make_append, make_record
from aegir_stream.typing import Append
from aegir_stream.verification import Damage, verify
from core.damaging import damaged, feed, lines_of, lives, segment_files
from core.runs import Life, deeds, drive, lived, on


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run with a checkpoint and a live tail."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    life.record_step()
    life.save()
    life.record_step()
    return life


def wrong(run: RunDirectory) -> list[Damage]:
    """Return what is damaged in a run."""
    return [damage for damage in verify(run) if damage.kind == "damaged"]


@settings(max_examples=60)
@given(deeds)
def test_what_kills_leave_behind_is_no_damage(script: list[tuple[str, int]]) -> None:
    """Whatever was killed and resumed, nothing counts as damaged, and every record is counted."""
    with lived(script) as life:
        checked = verify(life.run)
        found = list(checked)

        assert {damage.kind for damage in found} <= {"interrupted"}
        assert checked.records == len(life.everything)
        files = {path.stat().st_ino for path in segment_files(life.run)}
        assert checked.files == len(files)


def test_a_record_that_swallowed_the_newest_checksum_is_damage(life: Life) -> None:
    """Behind the last checksum of a live tail, too, a whole line that is no record is found."""
    path = life.run.live("sae_features")
    content = path.read_bytes()
    newest = content.rfind(b"\n", 0, -1)
    path.write_bytes(content[:newest] + b"\x0b" + content[newest + 1 :])

    (found,) = wrong(life.run)
    assert found.offset + found.length == len(content)


@settings(max_examples=120)
@given(deeds, st.integers(0, 20), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_every_flipped_bit_in_a_record_or_its_checksum_is_found(
    script: list[tuple[str, int]], file: int, where: float, bit: int
) -> None:
    """A bit that is not what was written is located, unless it stands where nothing checks it."""
    with lived([*script, ("step", 2), ("save", 0), ("step", 1)]) as life:
        files = segment_files(life.run)
        path = files[file % len(files)]
        content = path.read_bytes()
        at = int(where * len(content))
        checked = any(line.start <= at < line.end for line in lines_of(path))
        written = [codec.encode(record) for record in life.everything]
        line = content[content.rfind(b"\n", 0, at) + 1 : content.find(b"\n", at) + 1]
        path.write_bytes(damaged(content, ("flip", where, bit)))

        found = wrong(life.run)

        # A control line has no checksum of its own, and a torn line none at all.
        if checked and line in written:
            assert any(
                path.samefile(damage.path) and damage.offset <= at < damage.offset + damage.length
                for damage in found
            )


@settings(max_examples=40)
@given(lives)
def test_what_kills_leave_in_a_feed_is_no_damage(attempts: list[tuple[list[int], bytes]]) -> None:
    """Lines in which the attempts of a feed were killed are listed, and are no damage."""
    with lived() as life:
        # A fragment that ends like a line cannot be told from a damaged one.
        torn = [(sizes, left.replace(b"}", b"")) for sizes, left in attempts]
        written = feed(life.run, [*torn, ([1], b"")])
        checked = verify(life.run)

        assert {damage.kind for damage in checked} <= {"interrupted"}
        assert checked.records == len(written)


def test_a_damaged_record_is_located(life: Life) -> None:
    """The range is that of the append, with its trailer and the number of its records."""
    closed = life.run.history()[0].path
    content = closed.read_bytes()
    begin = content.index(b'{"step":2')
    end = content.index(b"\n", content.index(b'"batch"', begin)) + 1
    closed.write_bytes(content.replace(b'{"step":2,"token_index":1', b'{"step":2,"token_index":7'))

    assert list(verify(life.run)) == [
        Damage(
            path=str(closed),
            offset=begin,
            length=end - begin,
            reason="these bytes do not agree with their checksum",
            records=3,
        )
    ]


def test_names_of_one_file_are_checked_once(life: Life) -> None:
    """A snapshot that shares its file with `history/` counts once, a copy of it again."""
    checked = verify(life.run)
    assert list(checked) == []
    assert (checked.files, checked.records) == (2, 9)

    snapshot = life.run.snapshot("checkpoint-2")
    shutil.copy(snapshot, snapshot.with_suffix(".copy"))
    snapshot.with_suffix(".copy").replace(snapshot)
    again = verify(life.run)
    assert list(again) == []
    assert (again.files, again.records) == (3, 15)

    snapshot.write_bytes(snapshot.read_bytes().replace(b'"step":1', b'"step":7', 1))
    assert [damage.path for damage in verify(life.run)] == [str(snapshot)]


@pytest.mark.parametrize("what", ["append", "seal", "all"])
def test_a_seal_is_compared_with_what_it_closes(life: Life, what: str) -> None:
    """An append that is gone with its trailer is missed by the seal; so is a seal that is gone."""
    closed = life.run.history()[0].path
    content = closed.read_bytes()
    first = content.index(b'{"step":1')
    second = content.index(b'{"step":2')
    seal = content.index(b'{"$log":"seal"')
    left = {
        "append": content[:first] + content[second:],
        "seal": content[:seal],
        "all": content[:second],
    }
    closed.write_bytes(left[what])

    [damage] = verify(life.run)

    assert damage.kind == "damaged"
    if what == "append":
        assert damage.reason == "the seal counts 6 records, 3 are whole"
        assert damage.records == 3
    else:
        assert (damage.offset, damage.length) == (len(left[what]), 0)
        assert damage.reason == "the seal is missing: the file was cut off"


def test_whole_lines_without_trailer_are_listed_but_no_damage(life: Life) -> None:
    """A writer killed between its lines and their trailer leaves nothing wrong behind."""
    live = life.run.live("sae_features")
    life.record_step()
    content = live.read_bytes()
    cut = content.rindex(b'{"$log":"batch"')
    begin = content.index(b'{"step":4')
    life.kill()
    live.write_bytes(content[: cut + 9])
    assert list(verify(life.run)) == []

    life.resume("checkpoint-2")

    found = list(verify(life.run))
    assert [(d.kind, d.offset, d.length, d.records) for d in found] == [
        ("interrupted", begin, cut - begin, 3),
        ("interrupted", cut, 10, None),
    ]


def test_a_damaged_trailer_is_not_taken_for_a_torn_one(life: Life) -> None:
    """The last trailer before a kill is told from an unfinished line by how it ends."""
    live = life.run.live("sae_features")
    life.kill()
    content = live.read_bytes()
    live.write_bytes(content.replace(b'"crc32":', b'"crc3Z":'))
    life.resume("checkpoint-2")

    assert [d.kind for d in verify(life.run)] == ["interrupted", "damaged"]


def test_files_without_control_lines_are_checked_line_by_line(tmp_path: Path) -> None:
    """Where there are no checksums, every line must at least be a record."""
    life = Life(RunDirectory.at(tmp_path), control_lines=False)
    life.record_step()
    life.save()
    life.record_step()
    (tmp_path / "progress.jsonl").write_bytes(b'{"iter":1}\n{"iter"}\n{"iter":3}\n{"it')
    checked = verify(life.run)

    found = [(Path(d.path).name, d.kind, d.offset, d.length, d.reason) for d in checked]
    assert found == [("progress.jsonl", "damaged", 11, 9, "this line is no record")]
    assert checked.records == 8


@pytest.mark.parametrize("name", ["aegir_run.json", "checkpoint-2/aegir_metadata.json"])
@pytest.mark.parametrize("content", [b'{"run_id":', b"[]", b'{"run_id":"\xe2"}'])
def test_a_manifest_or_sidecar_that_is_no_object_is_damage(
    life: Life, name: str, content: bytes
) -> None:
    """What describes the run must be readable."""
    life.run.write_metadata("checkpoint-2", {"step": 2})
    (life.run.root / name).write_bytes(content)

    [damage] = verify(life.run)

    assert damage.path == str(life.run.root / name)
    assert "this is no JSON object" in damage.reason


def test_what_is_checked_is_one_file(life: Life) -> None:
    """What was found under a name is never read on in another file that has taken its place."""
    content = Content.of(life.run.disk, life.run.live("sae_features"))
    assert content.read(0, 10) == b'{"$log":"o'
    life.save()
    life.record_step(50)

    with pytest.raises(FileNotFoundError, match="another file has taken the place"):
        content.read(0, 10)


class BusyDisk(Disk):
    """A disk on which something happens before a reading, whose number it is told."""

    def __init__(self, happen: Callable[[int], None]) -> None:
        super().__init__()
        self.happen = happen
        self.readings = 0

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Look at a file, after something happened."""
        self.readings += 1
        self.happen(self.readings)
        return super().read(path, offset=offset, size=size, head=head)


def test_a_run_may_be_written_and_sealed_meanwhile(life: Life) -> None:
    """What a writer does between any two readings is never taken for damage."""

    def live_on(reading: int) -> None:
        if reading < 40:
            life.record_step()
            if reading % 3 == 0:
                life.save()

    assert list(verify(on(BusyDisk(live_on), life.run))) == []


def test_a_segment_that_is_sealed_meanwhile_counts_once() -> None:
    """Whenever the live tail moves to `history/`, its records are counted there or here."""
    for at in itertools.count(1):
        with lived([("step", 3), ("save", 0), ("step", 3)]) as life:

            def save(reading: int, life: Life = life, at: int = at) -> None:
                if reading == at:
                    life.save()

            disk = BusyDisk(save)
            checked = verify(on(disk, life.run))
            assert list(checked) == []
            assert checked.records == 6
            if disk.readings < at:
                break


def test_what_cannot_be_read_is_told(life: Life) -> None:
    """A file that fails is named, and the others are checked all the same."""

    class Broken(Disk):
        broken = ""

        def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
            if path.name == "sae_features.live.jsonl":
                raise OSError(5, "Input/output error")
            return super().read(path, offset=offset, size=size, head=head)

        def names(self, directory: Path) -> list[str]:
            if directory.name == self.broken:
                raise PermissionError(13, "Permission denied", str(directory))
            return super().names(directory)

    disk = Broken()
    checked = verify(on(disk, life.run))

    assert [d.reason for d in checked] == ["this cannot be read: Input/output error"]
    assert checked.records == 6

    disk.broken = "history"
    [damage] = verify(on(disk, life.run))
    assert (damage.path, damage.reason) == (
        str(life.run.history_path),
        "this cannot be read: Permission denied",
    )


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    """There is nothing to check where there is no directory."""
    with pytest.raises(RunNotFoundError, match="nowhere"):
        verify(RunDirectory.at(tmp_path / "nowhere"))


def test_checking_costs_no_memory(tmp_path: Path) -> None:
    """Appends of any size, with or without their trailers, and gigantic lines pass by in pieces."""
    life = Life(RunDirectory.at(tmp_path))
    row = make_append(make_record()).data
    drive(life.sink.write(Append(stream="sae_features", data=row * 100_000, records=100_000)))
    life.kill()
    with life.run.live("sae_features").open("ab") as file:
        file.write(row * 100_000)
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    life.resume(None)
    tracemalloc.start()
    try:
        found = list(verify(life.run))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [(d.kind, d.records) for d in found] == [("interrupted", 100_000), ("damaged", None)]
    assert peak < 20 << 20
