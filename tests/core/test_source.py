from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.disk import Disk, Reading
from aegir_stream.events import (
    CaughtUp,
    Checkpoint,
    Closed,
    Corrupt,
    Gap,
    Idle,
    Reset,
    Rewound,
    SAELogRecord,
    SourceSwitch,
    Stalled,
)
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.testing import ManualClock, make_append, make_record
from core.runs import Life, act, cursors_in, deeds, drain, drive, lived, records_in


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.at(tmp_path / "run")


def switches(deliveries: Iterable[Delivery]) -> list[str]:
    """Return the sources that were switched to."""
    return [d.source for d in deliveries if isinstance(d, SourceSwitch)]


# -- laws --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(deeds)
def test_reading_from_the_start_gives_the_surviving_records(script: list[tuple[str, int]]) -> None:
    """Whatever happened to a run, its surviving records are found once, in order."""
    with lived(script) as life:
        assert records_in(drain(RunSource(life.run, start="start"))) == life.surviving


@settings(max_examples=60)
@given(deeds)
def test_reading_all_attempts_gives_every_record(script: list[tuple[str, int]]) -> None:
    """Nothing that was ever committed is lost: `attempts="all"` finds it, once."""
    with lived(script) as life:
        source = RunSource(life.run, start="start", attempts="all")
        assert records_in(drain(source)) == life.everything


@settings(max_examples=60)
@given(deeds, st.data())
def test_following_sees_what_happens_once_and_in_order(
    script: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A follower that looks at any moments sees every record of every attempt exactly once."""
    with lived() as life:
        source = RunSource(life.run, start="start")
        seen = drain(source)
        for deed in script:
            act(life, deed)
            if data.draw(st.booleans()):
                seen += drain(source)
        seen += drain(source)

        assert records_in(seen) == life.everything
        assert not [d for d in seen if isinstance(d, Reset)]


@settings(max_examples=40)
@given(deeds, st.data())
def test_resuming_from_any_cursor_continues(
    script: list[tuple[str, int]], data: st.DataObject
) -> None:
    """From the cursor behind any record, exactly the records after it follow, seals or not."""
    half = len(script) // 2
    with lived(script[:half]) as life:
        before = drain(RunSource(life.run, start="start", attempts="all"))
        cursors = cursors_in(before)
        for deed in script[half:]:
            if deed[0] in ("step", "save"):
                act(life, deed)
        assume(cursors)
        at = data.draw(st.integers(0, len(cursors) - 1))
        read = records_in(before)[: at + 1]

        resumed = drain(RunSource(life.run, after=cursors[at]))

        assert isinstance(resumed[0], SourceSwitch)
        assert resumed[0].verdict == "resumed"
        assert records_in(resumed) == _expected(life, read)


def _expected(life: Life, read: list[SAELogRecord]) -> list[SAELogRecord]:
    """Return what follows `read`: the lineage's rest if it survives, else everything after it."""
    last = read[-1]
    chain = life.surviving if last in life.surviving else life.everything
    return chain[chain.index(last) + 1 :]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_every_prefix_of_the_bytes_gives_a_prefix_of_the_records(
    sizes: list[int], data: st.DataObject
) -> None:
    """A file that is cut anywhere yields the records that are whole, and nothing else."""
    with lived([("step", size) for size in sizes]) as life:
        live = life.run.live("sae_features")
        whole = live.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        live.write_bytes(whole[:cut])

        found = records_in(drain(RunSource(life.run, start="start")))

        assert found == life.surviving[: len(found)]
        lines = whole[:cut].split(b"\n")[:-1]
        assert len(found) == sum(not codec.is_control(line) for line in lines)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_chunks_of_any_size_give_the_same_records(pieces: list[int]) -> None:
    """A log that grows in arbitrary pieces is read as if it had been there at once."""
    with lived([("step", 3)] * 6) as life:
        live = life.run.live("sae_features")
        whole = live.read_bytes()
        live.write_bytes(b"")
        source, written = RunSource(life.run, start="start"), 0
        seen: list[Delivery] = []
        for piece in [*pieces, len(whole)]:
            with live.open("ab") as file:
                file.write(whole[written : written + piece])
            written += piece
            seen += drain(source)

        assert records_in(seen) == life.surviving


@settings(max_examples=40)
@given(deeds)
def test_live_tail_and_snapshots_are_disjoint_and_complete(script: list[tuple[str, int]]) -> None:
    """The live tail and all snapshots of an uninterrupted run hold every record exactly once."""
    with lived([deed for deed in script if deed[0] in ("step", "save")]) as life:
        files = [life.run.snapshot(c.name) for c in life.run.checkpoints()]
        files.append(life.run.live("sae_features"))
        lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]

        data = [line for line in lines if not line.startswith(b'{"$log"')]
        assert data == [make_append(record).data for record in life.everything]


class InterruptedDisk(Disk):
    """A disk on which something happens just before one of a reader's calls."""

    def __init__(self, *, at: int, what: Callable[[], None]) -> None:
        super().__init__()
        self._left = at
        self._what = what

    @property
    def happened(self) -> bool:
        """Whether the reader made enough calls."""
        return self._left < 0

    def _tick(self) -> None:
        self._left -= 1
        if self._left == -1:
            self._what()

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Look at a file, perhaps after something happened."""
        self._tick()
        return super().read(path, offset=offset, size=size, head=head)

    def names(self, directory: Path) -> list[str]:
        """List a directory, perhaps after something happened."""
        self._tick()
        return super().names(directory)


INTERRUPTIONS: dict[str, list[tuple[str, int]]] = {
    "seal": [("save", 0), ("step", 2)],
    "two seals": [("save", 0), ("step", 2), ("save", 0), ("step", 1)],
    "seal of nothing": [("save", 0), ("step", 0), ("save", 0), ("step", 1)],
    "resume": [("crash", 9), ("step", 2)],
    "resume and seal": [("crash", 0), ("step", 2), ("save", 0), ("step", 1)],
}


@pytest.mark.parametrize("control_lines", [True, False])
@pytest.mark.parametrize("what", INTERRUPTIONS)
@pytest.mark.parametrize("read", [2, 3])
def test_whatever_happens_at_whichever_moment_of_a_look_nothing_is_lost(
    what: str, read: int, *, control_lines: bool
) -> None:
    """A checkpoint or a resume between any two system calls of a reader costs and doubles nothing.

    The reader follows from the start; another one comes back just then, with a cursor at the end of
    a sealed segment or in the live tail.
    """
    for at in itertools.count():
        with lived([("step", 2), ("save", 0), ("step", 2)], control_lines=control_lines) as life:
            cursors = cursors_in(drain(RunSource(life.run, start="start")))
            seen = records_in(drain(RunSource(life.run, start="start")))

            def happen(life: Life = life) -> None:
                for deed in INTERRUPTIONS[what]:
                    act(life, deed)

            disk = InterruptedDisk(at=at, what=happen)
            watched = RunDirectory(life.run.cfg, disk=disk)
            follower = RunSource(watched, start="start")
            followed = drain(follower)
            returning = RunSource(watched, after=cursors[read - 1])
            returned = drain(returning)
            if not disk.happened:
                break
            followed += drain(follower)
            returned += drain(returning)

            assert _is_each_once(records_in(followed), life)
            assert _is_each_once(seen[:read] + records_in(returned), life)
            assert not [d for d in followed + returned if isinstance(d, Reset)]


def _is_each_once(records: list[SAELogRecord], life: Life) -> bool:
    """Tell whether records are those that survive, in order, with or without abandoned ones."""
    doubled = len(set(map(repr, records))) < len(records)
    surviving = [record for record in records if record in life.surviving]
    known = all(record in life.everything for record in records)
    return surviving == life.surviving and known and not doubled


# -- sources and checkpoints -------------------------------------------------------------------


def test_an_empty_directory_is_idle_until_a_log_appears(run: RunDirectory) -> None:
    """Nothing to read is said once; what is written later is read from its first record."""
    source = RunSource(run)
    assert [type(d) for d in drain(source)] == [Idle]

    life = Life(run)
    life.record_step()
    seen = drain(source)

    assert switches(seen) == ["live"]
    assert records_in(seen) == life.surviving
    assert isinstance(seen[-1], CaughtUp)


def test_reading_starts_behind_the_last_checkpoint(run: RunDirectory) -> None:
    """By default a reader gets the live tail: the records since the last checkpoint."""
    life = Life(run)
    life.record_step()
    life.save()
    life.record_step()

    seen = drain(RunSource(run))

    assert switches(seen) == ["live"]
    assert records_in(seen) == life.surviving[3:]


def test_reading_from_now_gives_only_what_comes(run: RunDirectory) -> None:
    """`start="now"` skips what is there, and misses nothing after it."""
    life = Life(run)
    life.record_step()
    source = RunSource(run, start="now")
    assert records_in(drain(source)) == []

    life.record_step()
    life.save()
    life.record_step()

    assert records_in(drain(source)) == life.surviving[3:]


def test_a_checkpoint_is_announced_between_its_records_and_the_next(run: RunDirectory) -> None:
    """Sealing shows no record twice and tells its checkpoint in place."""
    life = Life(run)
    source = RunSource(run)
    life.record_step()
    seen = drain(source)
    life.save()
    life.record_step()
    seen += drain(source)

    kinds = [type(d) for d in seen if not isinstance(d, SourceSwitch | CaughtUp)]
    assert kinds == [Chunk, Checkpoint, Chunk]
    assert records_in(seen) == life.surviving


def test_snapshots_stand_in_where_there_is_no_live_log(run: RunDirectory) -> None:
    """Without live tail and history the newest snapshot is read, then the ones after it."""
    life = Life(run)
    for _ in range(2):
        life.record_step()
        life.save()
    life.record_step()
    later = shutil.move(run.root / "checkpoint-2", run.root / "hidden")
    life.kill()
    run.live("sae_features").unlink()
    shutil.rmtree(run.history_path)
    source = RunSource(run)

    seen = drain(source)
    shutil.move(later, run.root / "checkpoint-2")
    seen += drain(source)

    assert switches(seen) == ["snapshot:checkpoint-1", "snapshot:checkpoint-2"]
    assert records_in(seen) == life.everything[:6]


def test_snapshots_without_headers_are_read_too(run: RunDirectory) -> None:
    """Files of plain records, as other writers make them, are a source like any other."""
    for step in (5, 10):
        directory = run.root / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        data = make_append(make_record(step=step)).data
        (directory / "sae_features.jsonl").write_bytes(data)

    seen = drain(RunSource(run))

    assert switches(seen) == ["snapshot:checkpoint-10"]
    assert Checkpoint(step=10, checkpoint="checkpoint-10") in seen
    assert [record.step for record in records_in(seen)] == [10]


def test_without_control_lines_the_files_hold_records_only(run: RunDirectory) -> None:
    """`control_lines=False` writes plain records, which survive seals and resumes all the same."""
    life = Life(run, control_lines=False)
    life.record_step()
    life.save()
    life.record_step()

    assert b"$log" not in run.live("sae_features").read_bytes()
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


@pytest.mark.parametrize("control_lines", [True, False])
def test_a_segment_that_is_sealed_empty_is_not_mistaken_for_the_next(
    run: RunDirectory, *, control_lines: bool
) -> None:
    """A reader that waits at an empty file notices that another one has taken its place."""
    life = Life(run, control_lines=control_lines)
    life.record_step(2)
    life.save()
    source = RunSource(run, start="start")
    seen = drain(source)
    life.record_step(0)
    life.save()
    life.record_step(2)
    seen += drain(source)
    life.save()
    life.record_step(1)
    seen += drain(source)

    assert records_in(seen) == life.surviving


def test_records_of_deleted_checkpoints_stay_in_history(run: RunDirectory) -> None:
    """Rotation deletes snapshots, not records; a follower does not even notice."""
    life = Life(run)
    source = RunSource(run, start="start")
    for _ in range(3):
        life.record_step()
        life.save()
        for checkpoint in run.checkpoints()[:-1]:
            shutil.rmtree(checkpoint.path)

    assert records_in(drain(source)) == life.everything
    assert records_in(drain(RunSource(run, start="start"))) == life.everything


def test_history_that_is_gone_is_told(run: RunDirectory) -> None:
    """Who deletes closed segments leaves readers from the start with a notice, not with silence."""
    life = Life(run)
    for _ in range(3):
        life.record_step()
        life.save()
    run.closed(1, "checkpoint-1").unlink()
    shutil.rmtree(run.root / "checkpoint-1")

    seen = drain(RunSource(run, start="start"))

    assert [d.reason for d in seen if isinstance(d, Reset)] == [
        "The file continues segment 1, which is gone"
    ]
    assert records_in(seen) == life.surviving[3:]


def test_history_that_is_gone_is_read_from_the_checkpoints(run: RunDirectory) -> None:
    """The snapshots that checkpoints still hold stand in for what `history/` has lost."""
    life = Life(run)
    for _ in range(2):
        life.record_step()
        life.save()
    shutil.rmtree(run.history_path)

    assert records_in(drain(RunSource(run, start="start"))) == life.surviving


def test_a_resume_is_told_to_followers(run: RunDirectory) -> None:
    """Followers learn that a new attempt rewound the run, and to which step."""
    life = Life(run)
    life.record_step()
    life.save()
    life.record_step()
    source = RunSource(run)
    drain(source)
    life.kill(torn=b'{"step":2,')
    life.resume("checkpoint-1")
    life.record_step()

    seen = drain(source)

    assert Rewound(attempt=2, to_step=1, continues="checkpoint-1") in seen
    assert [type(d) for d in seen if isinstance(d, Corrupt)] == [Corrupt]
    assert records_in(seen) == life.surviving[3:]


def test_a_cursor_in_a_surviving_segment_skips_what_was_rewound(run: RunDirectory) -> None:
    """A reader that comes back after a resume is not shown the records that were abandoned."""
    life = Life(run)
    life.record_step()
    cursor = cursors_in(drain(RunSource(run)))[-1]
    life.save()
    life.record_step()
    life.save()
    life.record_step()
    life.kill()
    life.resume("checkpoint-1")
    life.record_step()

    seen = drain(RunSource(run, after=cursor))

    assert records_in(seen) == life.surviving[3:]
    assert not [d for d in seen if isinstance(d, Rewound)]


def test_the_end_of_a_run_is_told(run: RunDirectory) -> None:
    """A closed log says so, with the status it was closed with."""
    life = Life(run)
    life.record_step()
    life.finish()

    assert Closed(status="finished") in drain(RunSource(run))


def test_gaps_are_told_in_place(run: RunDirectory) -> None:
    """What the writer had to drop is told where it is missing."""
    life = Life(run)
    life.record_step()
    gap = Gap(records=7, reason="No space left on device", first_step=2, last_step=3)
    drive(life.sink.mark(gap, stream="sae_features"))
    life.record_step()

    kinds = [type(d) for d in drain(RunSource(run)) if isinstance(d, Chunk | Gap)]
    assert kinds == [Chunk, Gap, Chunk]


# -- trouble -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cursor", "verdict"),
    [
        ("not a cursor", "malformed"),
        ("0123abcd~rank0:1:10:0:00000000", "foreign"),
        ("{log}~rank0:1:150:0:12345678", "foreign"),
        ("{log}~rank0:9:150:0:12345678", "expired"),
        ("{log}~rank0:1:99999999:0:12345678", "foreign"),
    ],
)
def test_a_cursor_that_cannot_be_resumed_gets_a_verdict(
    run: RunDirectory, cursor: str, verdict: str
) -> None:
    """A bad cursor is answered in band, and reading starts where it would have without one."""
    life = Life(run)
    life.record_step()
    log = run.read_manifest()["run_id"]

    seen = drain(RunSource(run, after=cursor.format(log=log)))

    assert isinstance(seen[0], SourceSwitch)
    assert (seen[0].verdict or "").startswith(f"{verdict}: ")
    assert "Reading starts behind the last checkpoint" in (seen[0].verdict or "") or (
        verdict == "malformed"
    )
    assert records_in(seen) == life.surviving


def test_damaged_lines_are_skipped_and_located(run: RunDirectory) -> None:
    """Garbage between records costs those lines only; where it stands is told, once for a row."""
    life = Life(run)
    life.record_step(1)
    live = run.live("sae_features")
    garbage = b'\x00\x00\x00{"step":1,"tok\n{"unrelated":true}\n[1,2]\n'
    offset = live.stat().st_size
    with live.open("ab") as file:
        file.write(garbage)
    life.record_step(1)

    seen = drain(RunSource(run))

    corrupt = [d for d in seen if isinstance(d, Corrupt)]
    assert [(c.offset, c.length, c.lines) for c in corrupt] == [(offset, len(garbage), 3)]
    assert records_in(seen) == life.surviving


def test_a_line_too_long_is_skipped_in_pieces(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line beyond the limit is never held in memory; the records behind it are delivered."""
    monkeypatch.setattr("aegir_stream.tail.LINE_LIMIT_BYTES", 1 << 20)
    life = Life(run)
    life.record_step(1)
    with run.live("sae_features").open("ab") as file:
        file.write(b"x" * (5 << 20) + b"\n")
    life.record_step(1)

    seen = drain(RunSource(run))

    corrupt = [d for d in seen if isinstance(d, Corrupt)]
    assert [c.length for c in corrupt] == [(5 << 20) + 1]
    assert records_in(seen) == life.surviving


def test_a_long_line_within_the_limit_is_a_record(run: RunDirectory) -> None:
    """Lines longer than one read are put together."""
    life = Life(run)
    long = make_append(make_record()).data.replace(
        b'"completion":0', b'"completion":0,"note":"' + b"x" * (1 << 20) + b'"'
    )
    with run.live("sae_features").open("ab") as file:
        file.write(long)
    life.record_step(1)

    assert len(records_in(drain(RunSource(run)))) == 2


@pytest.mark.parametrize("size", [4095, 4096, 4097, 300_000])
def test_a_file_may_begin_with_a_long_line(run: RunDirectory, size: int) -> None:
    """Without control lines its first line identifies it once it is whole, however long it is."""
    line = make_append(make_record()).data
    padding = size - len(line) - len(b',"note":""')
    long = line.replace(b"}\n", b',"note":"' + b"x" * padding + b'"}\n')
    assert len(long) == size
    run.root.mkdir()
    path = run.live("sae_features")
    path.write_bytes(long[:-1])
    source = RunSource(run)
    before = records_in(drain(source))
    with path.open("ab") as file:
        file.write(long[-1:] + line)
    after = records_in(drain(source))

    assert (len(before), len(after)) == (0, 2)
    path.write_bytes(line * 10)
    assert any(isinstance(delivery, Reset) for delivery in drain(source))


def test_a_truncated_file_is_told_and_nothing_is_doubled(run: RunDirectory) -> None:
    """Reading goes on at the end of what was left, once the file is as long again."""
    life = Life(run)
    life.record_step(4)
    source = RunSource(run)
    seen = drain(source)
    live = run.live("sae_features")
    os.truncate(live, live.stat().st_size - 200)
    with live.open("ab") as file:
        file.write(b"\n")

    assert [type(d) for d in drain(source)] == [Stalled]
    life.record_step(1)
    seen += drain(source)

    assert [type(d) for d in seen if isinstance(d, Reset)] == [Reset]
    assert records_in(seen) == life.everything


def test_a_replaced_file_is_told(run: RunDirectory) -> None:
    """Another log in the place of the one being read is noticed by its first line."""
    life = Life(run)
    life.record_step(2)
    source = RunSource(run)
    drain(source)
    life.kill()
    other = Life(RunDirectory.at(run.root.with_name("other")))
    other.record_step(1)
    shutil.copy(other.run.live("sae_features"), run.live("sae_features"))

    seen = drain(source)

    assert [type(d) for d in seen if isinstance(d, Reset)] == [Reset]
    assert records_in(seen) == other.surviving


# -- lanes -------------------------------------------------------------------------------------


def test_ranks_are_read_together_and_resumed_together(run: RunDirectory) -> None:
    """Every rank writes its own file; one cursor resumes them all."""
    ranks = [Life(run, rank=0), Life(run, rank=1)]
    for life in ranks:
        life.record_step(2)
    seen = drain(RunSource(run))
    chunks = [d for d in seen if isinstance(d, Chunk)]
    assert [chunk.rank for chunk in chunks] == [0, 1]

    for life in ranks:
        life.save()
        life.record_step(1)
    resumed = drain(RunSource(run, after=cursors_in(seen)[-1]))

    fresh = [life.surviving[-1] for life in ranks]
    assert records_in(resumed) == fresh


def test_a_rank_that_appears_later_is_read_from_its_first_record(run: RunDirectory) -> None:
    """A lane that was not there when the cursor was made is new as a whole."""
    first = Life(run, rank=0)
    first.record_step(1)
    source = RunSource(run, start="now")
    drain(source)
    second = Life(run, rank=1)
    second.record_step(2)
    second.save()
    second.record_step(1)

    assert records_in(drain(source)) == second.surviving


def test_a_second_writer_gets_its_own_file(run: RunDirectory) -> None:
    """Two writers of one rank never share a file; readers read both."""
    first, second = Life(run), Life(run)
    first.record_step(1)
    second.record_step(2)
    first.save()
    first.record_step(1)

    names = sorted(p.name for p in run.root.glob("sae_features.live*.jsonl"))
    assert names == ["sae_features.live.jsonl", "sae_features.live.rank0-2.jsonl"]
    found = records_in(drain(RunSource(run, start="start")))
    assert sorted(found, key=repr) == sorted(first.surviving + second.surviving, key=repr)


def test_a_clock_that_is_set_back_changes_nothing(run: RunDirectory) -> None:
    """Order is the place in the file: neither steps nor attempts are sorted by any time."""
    clock = ManualClock(now=2_000_000_000.0)
    first = JournalSink(run, clock=clock)
    drive(first.open())
    drive(first.write(make_append(make_record(step=1))))
    drive(first.seal(checkpoint="checkpoint-1", step=1))
    clock.now = 1.0
    for path in (run.closed(1, "checkpoint-1"), run.manifest_path):
        os.utime(path, (4e9, 4e9))
    drive(first.write(make_append(make_record(step=2))))
    drive(first.aclose())
    second = JournalSink(run, continues="checkpoint-1", clock=clock)
    drive(second.open())
    drive(second.write(make_append(make_record(step=3))))
    drive(second.aclose())

    assert [record.step for record in records_in(drain(RunSource(run, start="start")))] == [1, 3]
