from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.batch import Events
from aegir_stream.events import StepMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.replay import read_events, replay
from aegir_stream.sinks import JournalSink
from aegir_stream.views import Band, StepMetricsState, StepMetricsView, is_healthy

names = st.sampled_from(["stream_mixing/mix_tv", "ledger/evictions", "mine"])
values = st.none() | st.floats()
bounds = st.none() | st.floats()
lines = st.lists(
    st.builds(
        StepMetrics,
        step=st.integers(0, 5),
        ts=st.floats(0, 1e9),
        metrics=st.dictionaries(names, values),
        bands=st.dictionaries(names, st.tuples(bounds, bounds)),
    )
)


def folded(*batches: list[StepMetrics]) -> StepMetricsState:
    """Fold batch after batch."""
    view = StepMetricsView()
    state = view.initial()
    for batch in batches:
        state = view.fold(state, batch)
    return state


@given(lines, st.integers(0, 10))
def test_folding_does_not_depend_on_how_lines_arrive(events: list[StepMetrics], cut: int) -> None:
    """In one batch or in two, the state is the same."""
    whole, halves = folded(events), folded(events[:cut], events[cut:])

    assert repr(whole) == repr(halves)


@given(lines)
def test_step_metrics_are_read_as_they_were_written(events: list[StepMetrics]) -> None:
    """Through the journal and back, with what is no number and with what is not there."""
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory.at(directory)
        recorder = Recorder(JournalSink(run))
        for event in events:
            recorder.emit(Events("step_metrics", (event,), step=event.step))
        assert recorder.close()

        assert repr(list(read_events(run, "step_metrics"))) == repr(events)


def test_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    """A resumed run writes its steps once more; bands stay until another is told."""
    run = RunDirectory.at(tmp_path)
    recorder = Recorder(JournalSink(run))
    told = [
        StepMetrics(step=1, ts=1.0, metrics={"a": 1.0, "b": None}, bands={"a": (None, 2.0)}),
        StepMetrics(step=2, ts=2.0, metrics={"a": 9.0}),
        StepMetrics(step=2, ts=3.0, metrics={"a": 3.0, "b": 5.0}),
    ]
    for event in told:
        recorder.emit(Events("step_metrics", (event,), step=event.step))
    assert recorder.close()

    state = replay(run, StepMetricsView()).state
    assert state.values == {"a": {1: 1.0, 2: 3.0}, "b": {1: None, 2: 5.0}}
    assert state.bands == {"a": (None, 2.0)}
    assert state.alarms == ["a"]


def test_the_newest_value_that_is_known_is_judged() -> None:
    """A step without a value neither raises an alarm nor ends one."""
    state = folded(
        [
            StepMetrics(
                step=1, ts=1.0, metrics={"a": 9.0}, bands={"a": (0.0, 1.0), "b": (0.0, 1.0)}
            ),
            StepMetrics(step=2, ts=2.0, metrics={"a": None, "b": None}),
        ]
    )

    assert state.newest("a") == 9.0
    assert state.newest("b") is None
    assert state.newest("c") is None
    assert state.alarms == ["a"]


@pytest.mark.parametrize(
    ("value", "band", "healthy"),
    [
        (0.0, (0.0, 1.0), True),
        (1.0, (0.0, 1.0), True),
        (math.nextafter(1.0, 2.0), (0.0, 1.0), False),
        (math.nextafter(0.0, -1.0), (0.0, 1.0), False),
        (1e300, (0.0, None), True),
        (-1e300, (None, 0.0), True),
        (None, (0.0, 1.0), True),
        (math.nan, (None, None), False),
        (math.inf, (0.0, None), True),
    ],
)
def test_a_band_includes_its_ends(value: float | None, band: Band, *, healthy: bool) -> None:
    """What is unknown raises no alarm; what is no number does."""
    assert is_healthy(value, band) is healthy
