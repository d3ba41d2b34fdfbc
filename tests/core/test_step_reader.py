"""Reading one step without the others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.disk import Disk, Reading
from aegir_stream.events import Completion, SAELogRecord
from aegir_stream.inventory import Content
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.replay import read_events
from aegir_stream.sinks import JournalSink
from aegir_stream.step_reader import StepReader
from aegir_stream.stretches import FileIndex
from aegir_stream.testing import make_append, make_record
from aegir_stream.typing import Append
from core.runs import TORN, Life, deeds, drive, lived, on


class CountingDisk(Disk):
    """A disk that counts the bytes that were read, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.reads = 0

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Read."""
        reading = super().read(path, offset=offset, size=size, head=head)
        self.bytes += len(reading.data)
        self.reads += 1
        return reading


def line_of(step: int, completion: int = 0, *, rank: int = 0, text: str = "") -> Completion:
    """Return a completion's line."""
    return Completion(
        step=step,
        completion=completion,
        rank=rank,
        group=0,
        rewards={},
        reward=float(step),
        advantage=0.0,
        length=1,
        terminated=True,
        text=text or None,
    )


def write(sink: JournalSink, *lines: Completion, step: int | None = None) -> None:
    """Append lines of one step to the feed of completions."""
    data = b"".join(map(codec.encode, lines))
    drive(sink.write(Append(stream="completions", data=data, records=len(lines), step=step)))


def by_step(events: Iterable[Any]) -> dict[int, list[Any]]:
    """Return events by their step, in order."""
    found: dict[int, list[Any]] = {}
    for event in events:
        found.setdefault(event.step, []).append(event)
    return found


def read_steps(reader: StepReader, kind: type[Any] = SAELogRecord) -> dict[int, list[Any]]:
    """Return what a reader says of every step that it knows."""
    steps = reader.steps()
    assert steps == sorted(set(steps))
    return {step: [codec.decode(line, kind) for line in reader.lines(step)] for step in steps}


@given(script=deeds)
def test_the_steps_are_those_of_a_replay(script: list[tuple[str, int]]) -> None:
    """Whatever happened to a run: each step has the events that survive, and no others."""
    with lived(script) as life:
        replayed = by_step(read_events(life.run, "sae_features"))
        reader = StepReader(life.run, "sae_features")
        assert read_steps(reader) == replayed
        assert read_steps(reader) == replayed
        assert list(reader.lines(10**6)) == []


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=30), saves=st.sets(st.integers(1, 30))
)
def test_files_without_control_lines_are_bisected(sizes: list[int], saves: set[int]) -> None:
    """Their lines alone tell the steps."""
    with lived(control_lines=False) as life:
        for step, size in enumerate(sizes, start=1):
            life.record_step(size)
            if step in saves:
                life.save()
        found = read_steps(StepReader(life.run, "sae_features"))
        assert found == by_step(life.surviving)


@given(
    attempts=st.lists(
        st.tuples(
            st.sampled_from([0, 1]),  # the rank that goes on
            st.integers(0, 6),  # the checkpoint it goes on from
            st.lists(st.integers(1, 3), max_size=5),  # lines of each step
            st.booleans(),  # whether its appends name their step
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_feed_that_was_rewound(attempts: list[tuple[int, int, list[int], bool]]) -> None:
    """Attempts share a file; what a later one rewound is left out, in every lane."""
    with lived() as life:
        last = 0
        for rank, wanted, sizes, named in attempts:
            at = min(wanted, last)
            continues = f"checkpoint-{at}" if at else None
            sink = JournalSink(life.run, rank=rank, continues=continues)
            drive(sink.open())
            for step, size in enumerate(sizes, start=at + 1):
                lines = [line_of(step, one, rank=rank) for one in range(size)]
                write(sink, *lines, step=step if named else None)
                last = step
            drive(sink.aclose())
        replayed = by_step(read_events(life.run, "completions"))
        assert read_steps(StepReader(life.run, "completions"), Completion) == replayed


@given(cuts=st.lists(st.integers(1, 400), max_size=6), torn=st.booleans())
def test_a_file_that_grows_is_gone_on_with(cuts: list[int], torn: bool) -> None:  # noqa: FBT001
    """Looks at any moments find what one look at the end finds, a torn line included."""
    with lived([("step", 3), ("save", 0), ("step", 2), ("step", 3)]) as life:
        life.record_step(2)
        life.kill(torn=TORN if torn else b"")
        path = life.run.live("sae_features")
        whole = path.read_bytes()
        kind = STREAMS["sae_features"].kind
        index, fresh = FileIndex(kind), FileIndex(kind)
        for cut in [*sorted(cuts), len(whole)]:
            path.write_bytes(whole[:cut])
            index.look(Content.of(life.run.disk, path))
        fresh.look(Content.of(life.run.disk, path))
        assert list(index.stretches()) == list(fresh.stretches())
        assert index.openings == fresh.openings


def test_another_file_is_begun_anew(tmp_path: Path) -> None:
    """What stood in the file before is not looked for in the one that takes its place."""
    run = RunDirectory.at(tmp_path)
    sink = JournalSink(run)
    drive(sink.open())
    for step in (1, 2, 3):
        write(sink, line_of(step), step=step)
    drive(sink.aclose())
    reader = StepReader(run, "completions")
    assert reader.steps() == [1, 2, 3]
    path = run.live("completions")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], codec.encode(line_of(7)), codec.encode(line_of(9))]))
    assert reader.steps() == [7, 9]


def test_damage_costs_its_own_append(tmp_path: Path) -> None:
    """A trailer that cannot be read leaves its lines to be found by their steps."""
    run = RunDirectory.at(tmp_path)
    life = Life(run)
    for _ in range(6):
        life.record_step()
    life.kill()
    path = run.live("sae_features")
    lines = path.read_bytes().splitlines(keepends=True)
    trailers = [at for at, line in enumerate(lines) if line.startswith(b'{"$log":"batch"')]
    lines[trailers[1]] = lines[trailers[1]].replace(b'"bytes":', b'"bytes":9')
    lines[trailers[3]] = b'{"$log":"ba\n'
    length = sum(map(len, lines[trailers[4] + 1 : trailers[5]]))
    short = lines[trailers[5]].replace(b'"bytes":%d' % length, b'"bytes":%d' % (length - 9))
    assert short != lines[trailers[5]]
    lines[trailers[5]] = short
    path.write_bytes(b"".join(lines))
    assert read_steps(StepReader(run, "sae_features")) == by_step(life.surviving)


def test_lines_without_a_trailer_are_of_the_attempt_before_them(tmp_path: Path) -> None:
    """A writer that was killed leaves some: a resume rewinds them, or has written them."""
    run = RunDirectory.at(tmp_path)
    for continues, steps in ((None, (1, 2)), ("checkpoint-1", (2, 3))):
        sink = JournalSink(run, continues=continues)
        drive(sink.open())
        for step in steps:
            write(sink, line_of(step, rank=len(steps)), step=step)
        drive(sink.aclose())
        with run.live("completions").open("ab") as file:
            file.write(codec.encode(line_of(4)))
    found = read_steps(StepReader(run, "completions"), Completion)
    assert found == by_step(read_events(run, "completions"))
    assert [len(lines) for lines in found.values()] == [1, 1, 1, 1]


def test_a_run_that_is_not_there_has_no_steps(tmp_path: Path) -> None:
    """It may come later."""
    reader = StepReader(RunDirectory.at(tmp_path / "none"), "completions")
    assert reader.steps() == []
    assert list(reader.lines(1)) == []


@pytest.mark.parametrize("step", [3, 50, 119])
def test_a_step_costs_no_reading_of_the_others(tmp_path: Path, step: int) -> None:
    """Of a run of many steps and checkpoints, only a small share is read."""
    run = RunDirectory.at(tmp_path)
    life = Life(run)
    for at in range(1, 121):
        life.step = at
        records = [make_record(step=at, token=token) for token in range(400)]
        drive(life.sink.write(make_append(*records)))
        if at % 40 == 0:
            life.save()
    life.kill()
    size = sum(len(path.read_bytes()) for path in run.history_path.iterdir())
    disk = CountingDisk()
    reader = StepReader(on(disk, run), "sae_features")
    assert len(list(reader.lines(step))) == 400
    # The step itself, a look at each append of its segment, one at the first record of others.
    assert disk.bytes < size / 4
    assert disk.reads < 3 * 40
    first = disk.bytes
    assert len(list(reader.lines(step))) == 400
    assert disk.bytes - first < size / 15


def test_a_feed_of_long_lines_is_listed_by_its_trailers(tmp_path: Path) -> None:
    """The steps of a feed are known without its lines."""
    run = RunDirectory.at(tmp_path)
    sink = JournalSink(run)
    drive(sink.open())
    for step in range(1, 101):
        write(sink, *(line_of(step, one, text="x" * 50_000) for one in range(2)), step=step)
    drive(sink.aclose())
    size = run.live("completions").stat().st_size
    disk = CountingDisk()
    reader = StepReader(on(disk, run), "completions")
    assert reader.steps() == list(range(1, 101))
    assert disk.bytes < size / 10
    before = disk.bytes
    assert reader.steps()[-1] == 100
    assert disk.bytes - before < 512 << 10
