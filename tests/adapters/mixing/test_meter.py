from __future__ import annotations

import threading
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from aegir_adapters.mixing import Targets
from aegir_adapters.mixing.formulas import raw_keys
from aegir_adapters.mixing.meter import MeterRow, MixMeter

from .streams import Source, mixer_of

SOURCES = [Source("a", 40, 3.0), Source("b", 40), Source("c", 4)]
KEYS = [
    *(f"stream_mixing/picks/{name}" for name in "abc"),
    "stream_mixing/stays",
    "stream_mixing/switches",
    "stream_mixing/reader_restarts",
    "stream_mixing/read_seconds",
    "stream_mixing/windows",
    "stream_mixing/staleness_max_steps",
    "stream_mixing/steps",
    "stream_mixing/live_readers_min",
]


def as_is(items: list[Any]) -> list[Any]:
    """Collate nothing."""
    return items


def picks(raw: dict[str, float]) -> dict[str, float]:
    """Return the picks of a window by reader."""
    prefix = "stream_mixing/picks/"
    return {key.removeprefix(prefix): n for key, n in raw.items() if key.startswith(prefix)}


@pytest.mark.parametrize("context", ["none", "fork", "spawn"])
def test_picks_of_workers_are_counted_here(context: str) -> None:
    """Whatever kind of process picks, the trainer's process drains the counts of its items."""
    mixer = mixer_of(SOURCES, shards=4)
    loader: DataLoader[Any] = DataLoader(
        mixer,
        batch_size=None,
        num_workers=0 if context == "none" else 2,
        multiprocessing_context=None if context == "none" else context,
        collate_fn=as_is,
    )
    for epoch in range(1 if context == "spawn" else 2):
        mixer.begin_step(epoch)
        items = list(loader)
        raw = mixer.drain_step_metrics()
        assert picks(raw) == Counter(item.reader for item in items) == {"a": 40, "b": 40, "c": 4}
        assert raw["stream_mixing/stays"] + raw["stream_mixing/switches"] == 84 - 4
        assert raw["stream_mixing/live_readers_min"] == 0
        assert mixer._last_picked_step == dict.fromkeys("abc", epoch)


def test_the_keys_are_fixed_whatever_happened() -> None:
    """Ranks that did different things, or nothing yet, drain the same keys in the same order."""
    mixer = mixer_of(SOURCES, shards=4)
    before = mixer.drain_step_metrics()
    list(mixer)
    assert list(before) == list(mixer.drain_step_metrics()) == KEYS
    assert list(raw_keys(mixer.targets).all) == KEYS
    assert before["stream_mixing/live_readers_min"] == 3


def test_a_drain_begins_a_new_window() -> None:
    """What was drained is not drained again, and each window knows how many steps it has."""
    mixer = mixer_of(SOURCES, shards=4)
    stream = iter(mixer)
    mixer.begin_step(10)
    list(islice(stream, 30))
    assert sum(picks(mixer.drain_step_metrics()).values()) == 30
    mixer.begin_step(11)
    mixer.begin_step(12)
    list(islice(stream, 8))
    raw = mixer.drain_step_metrics()
    assert sum(picks(raw).values()) == 8
    assert raw["stream_mixing/steps"] == 2
    assert sum(picks(mixer.drain_step_metrics()).values()) == 0


def test_no_pick_is_lost_to_a_drain_in_another_thread() -> None:
    """Windows drained while another thread picks add up to all picks."""
    mixer = mixer_of([Source("a", 20_000), Source("b", 20_000)], shards=2)
    thread = threading.Thread(target=lambda: Counter(mixer))
    thread.start()
    windows = []
    while thread.is_alive():
        windows.append(mixer.drain_step_metrics())
    thread.join()
    windows.append(mixer.drain_step_metrics())
    assert sum(sum(picks(raw).values()) for raw in windows) == 40_000
    for raw in windows:
        assert min(raw.values()) >= 0


def two_workers() -> tuple[MixMeter, list[MeterRow]]:
    """Return a meter of readers a and b, and the rows of two workers with a shard each."""
    meter = MixMeter(Targets.of({"a": 1, "b": 1}, {"a": "text", "b": "text"}), workers=2)
    rows = [meter.row(worker, workers=2) for worker in range(2)]
    for row in rows:
        row.begin(shards=1)
    return meter, rows


def test_staleness_is_that_of_the_reader_that_waits_longest() -> None:
    """A reader waits from its last pick, or from the first step seen here if it had none."""
    meter, rows = two_workers()
    meter.begin_step(100)
    rows[0].cells[0] += 1
    meter.begin_step(103)
    rows[1].cells[0] += 1
    assert meter.drain()["stream_mixing/staleness_max_steps"] == 3
    assert meter._last_picked_step == [103, -1]
    rows[1].cells[1] += 1
    meter.begin_step(104)
    assert meter.drain()["stream_mixing/staleness_max_steps"] == 1
    assert meter._last_picked_step == [103, 103]


def test_a_reader_that_has_ended_waits_for_nothing() -> None:
    """A reader grows stale only where some shard still has it; live readers tell of the rest."""
    meter, rows = two_workers()
    meter.begin_step(0)
    rows[0].cells[0] += 1
    rows[1].cells[1] += 1
    meter.begin_step(7)
    rows[0].cells[0] += 1
    rows[0].end(1, left=1)
    raw = meter.drain()
    assert raw["stream_mixing/staleness_max_steps"] == 7
    assert raw["stream_mixing/live_readers_min"] == 1
    rows[1].end(1, left=1)
    assert meter.drain()["stream_mixing/staleness_max_steps"] == 0


def test_workers_that_are_gone_keep_their_counts_only() -> None:
    """After an iteration with fewer workers, readers that ended in others are live again."""
    meter, rows = two_workers()
    rows[1].cells[0] += 1
    rows[1].end(0, left=1)
    meter.row(None).begin(shards=2)
    raw = meter.drain()
    assert raw["stream_mixing/picks/a"] == 1
    assert raw["stream_mixing/live_readers_min"] == 2


@given(st.booleans())
def test_time_in_readers_is_measured_when_asked_for(timed: bool) -> None:  # noqa: FBT001
    """`read_seconds` is 0 unless timers are on."""
    mixer = mixer_of(SOURCES, shards=4, timed=timed)
    list(mixer)
    assert (mixer.drain_step_metrics()["stream_mixing/read_seconds"] > 0) is timed
