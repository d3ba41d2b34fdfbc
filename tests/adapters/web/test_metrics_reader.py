from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from aegir_adapters.web.metrics_reader import MetricsReader, has_metrics
from aegir_stream import codec
from aegir_stream.batch import Events
from aegir_stream.events import Open, StepMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink
from aegir_stream.surviving import SurvivingReader


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory that is not there yet."""
    return RunDirectory.at(tmp_path / "run")


def line(step: int, value: float | None, name: str = "a") -> bytes:
    """Return the line of a step, as another program would write it."""
    return json.dumps({"step": step, "ts": 1.0, "metrics": {name: value}}).encode() + b"\n"


def append(run: RunDirectory, *lines: bytes) -> None:
    """Append to the metrics of a run, as another program would."""
    run.root.mkdir(exist_ok=True)
    with run.live("step_metrics").open("ab") as file:
        file.writelines(lines)


def points(reader: MetricsReader, name: str = "a") -> list[Any]:
    """Return what was read of a metric."""
    metric = reader.table.metrics.get(name)
    return metric.series.points() if metric else []


def test_what_is_appended_is_read_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll reads what is new and nothing else, and says whether anything is."""
    taken: list[Any] = []
    read = SurvivingReader.read

    def counted(reader: SurvivingReader) -> list[Any] | None:
        events = read(reader)
        taken.extend(events or ())
        return events

    monkeypatch.setattr(SurvivingReader, "read", counted)
    reader = MetricsReader(run)
    assert not reader.poll()
    assert not has_metrics(run)

    for step in range(5):
        append(run, line(step, step / 10))
        assert reader.poll()
        assert not reader.poll()

    assert points(reader) == [(step, step / 10) for step in range(5)]
    assert len(taken) == 5
    assert has_metrics(run)


def test_an_unfinished_line_waits_for_its_end(run: RunDirectory) -> None:
    """It is read when it is whole."""
    reader = MetricsReader(run)
    append(run, line(1, 0.5), line(2, 0.6)[:-5])
    reader.poll()
    before = points(reader)
    append(run, line(2, 0.6)[-5:])

    assert reader.poll()
    assert (before, points(reader)) == ([(1, 0.5)], [(1, 0.5), (2, 0.6)])
    assert reader.skipped == 0


def test_damaged_lines_are_counted_and_passed_over(run: RunDirectory) -> None:
    """What stands around them is read."""
    garbage = b'{"step": 2, "metr\n', b"\0" * 100 + b"\n", b"[1]\n", b'{"step": 3}\n'
    append(run, line(1, 0.5), *garbage, line(4, 0.6))
    reader = MetricsReader(run)

    assert reader.poll()
    assert points(reader) == [(1, 0.5), (4, 0.6)]
    assert reader.skipped == 4


def test_a_value_that_is_no_number_is_read(run: RunDirectory) -> None:
    """As it is written by the log."""
    append(run, codec.encode(StepMetrics(step=1, ts=1.0, metrics={"a": math.nan})))
    reader = MetricsReader(run)
    reader.poll()

    assert repr(reader.table.metrics["a"].series.newest) == "(1, nan)"


def test_the_last_line_of_a_step_counts(run: RunDirectory) -> None:
    """Also without a word of a resume."""
    append(run, *(line(step, 0.5) for step in (1, 2, 3)), line(2, 0.7))
    reader = MetricsReader(run)
    reader.poll()

    assert points(reader) == [(1, 0.5), (2, 0.7), (3, 0.5)]


def test_what_a_resume_rewound_is_left_out(run: RunDirectory) -> None:
    """While the run is watched, and by those who come later."""
    opening = Open(log="l", stream="step_metrics", lane="rank0", segment=1, attempt=1, rank=0)
    append(run, codec.encode(opening), *(line(step, 0.5) for step in (1, 2, 3, 4)))
    reader = MetricsReader(run)
    reader.poll()
    before = points(reader)
    resumed = Open(
        log="l",
        stream="step_metrics",
        lane="rank0",
        segment=1,
        attempt=2,
        rank=0,
        continues="checkpoint-2",
        continues_step=2,
    )
    append(run, codec.encode(resumed), line(3, 0.9))

    assert reader.poll()
    assert len(before) == 4
    assert points(reader) == [(1, 0.5), (2, 0.5), (3, 0.9)]
    assert reader.table.step == 3
    append(run, line(4, 0.8))
    assert reader.poll()
    late = MetricsReader(run)
    late.poll()
    assert points(reader) == points(late) == [(1, 0.5), (2, 0.5), (3, 0.9), (4, 0.8)]


def test_a_journal_is_read_like_any_other_file(run: RunDirectory) -> None:
    """The lines of several metrics of a step count together."""
    recorder = Recorder(JournalSink(run))
    for name in ("a", "b"):
        event = StepMetrics(step=1, ts=1.0, metrics={name: 1.0}, bands={name: (0.0, None)})
        recorder.emit(Events("step_metrics", (event,), step=1))
    assert recorder.close()
    reader = MetricsReader(run)
    reader.poll()

    assert (points(reader, "a"), points(reader, "b")) == ([(1, 1.0)], [(1, 1.0)])
    assert reader.table.metrics["b"].band == (0.0, None)
    assert reader.skipped == 0


def test_what_cannot_be_read_is_read_when_it_can_be(run: RunDirectory) -> None:
    """A directory in the place of the file is no failure."""
    run.live("step_metrics").mkdir(parents=True)
    reader = MetricsReader(run)
    assert not reader.poll()

    run.live("step_metrics").rmdir()
    append(run, line(1, 0.5))
    reader.poll()

    assert points(reader) == [(1, 0.5)]
