from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from aegir_adapters.mixing import (
    SCALARS,
    MixTotals,
    Reader,
    Targets,
    aggregate_step_metrics,
    mix_scalars,
)
from aegir_adapters.mixing.reader import _modality_for_reader

from .ranks import Ranks
from .streams import (
    Deeds,
    Event,
    RankLog,
    Source,
    mixer_of,
    mixes,
    scalars_by_hand,
    schedules,
)

SHARDS = 4
Scalars = dict[str, float | None]


class Mixed(NamedTuple):
    """What came of a schedule on one rank: all that it read, and the scalars of each window."""

    log: RankLog
    windows: list[Scalars]


def mix(sources: list[Source], seed: int, schedule: list[Deeds]) -> Mixed:
    """Do this rank's part of a schedule."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    deeds, log = schedule[rank], RankLog([], list(range(SHARDS))[rank :: len(schedule)])
    mixer = mixer_of(sources, log.events, seed=seed, shards=SHARDS)
    stream, windows = iter(mixer), []
    for step, picks in enumerate(deeds.picks, start=1):
        mixer.begin_step(step)
        log.events.append(Event("step", step=step))
        for _ in range(picks):
            next(stream, None)
        if step in deeds.drains:
            raw = mixer.drain_step_metrics()
            windows.append(aggregate_step_metrics(raw, mixer.targets))
    return Mixed(log, windows)


def assert_as_by_hand(sources: list[Source], schedule: list[Deeds], ranks: list[Mixed]) -> None:
    """Compare the scalars of every window on every rank with those of all histories."""
    drains = schedule[0].drains
    logs = [rank.log for rank in ranks]
    for window, (before, last) in enumerate(zip([0, *drains], drains, strict=False)):
        expected = scalars_by_hand(sources, logs, first=before + 1, last=last)
        for rank in ranks:
            assert list(rank.windows[window]) == list(SCALARS)
            assert rank.windows[window] == pytest.approx(expected, abs=1e-12)


@given(mixes(), st.integers(0, 2**64 - 1), schedules())
def test_scalars_of_one_rank_are_those_of_its_history(
    sources: list[Source], seed: int, schedule: list[Deeds]
) -> None:
    """Each window's seven scalars follow from what the readers saw, whatever was picked when."""
    assert_as_by_hand(sources, schedule, [mix(sources, seed, schedule)])


@settings(max_examples=40)
@given(sources=mixes(), seed=st.integers(0, 99), schedule=schedules(ranks=2))
def test_scalars_of_two_ranks_are_those_of_both_histories(
    two_ranks: Ranks, sources: list[Source], seed: int, schedule: list[Deeds]
) -> None:
    """Two real ranks agree on scalars that follow from what the readers of both saw."""
    assert_as_by_hand(sources, schedule, two_ranks.run(mix, sources, seed, schedule))


def stuck() -> Scalars:
    """Mix so that this rank picks one reader only: rank 0 the first, rank 1 the second."""
    rank = distributed.get_rank()
    sources = [Source("a", 100 * (rank == 0)), Source("b", 100 * (rank == 1))]
    mixer = mixer_of(sources, shards=2)
    for _ in zip(range(10), mixer, strict=False):
        pass
    return aggregate_step_metrics(mixer.drain_step_metrics(), mixer.targets)


def test_counts_are_summed_before_any_ratio(two_ranks: Ranks) -> None:
    """Two ranks that are each stuck on a reader of their own mix both evenly: entropy 1, not 0."""
    for scalars in two_ranks.run(stuck):
        assert scalars["stream_mixing/pick_entropy"] == 1.0
        assert scalars["stream_mixing/mix_tv"] == 0.0
        assert scalars["stream_mixing/switch_rate"] == 0.0


def totals(**picks: float) -> MixTotals:
    """Return a window of picks only."""
    return MixTotals(
        picks=picks, stays=0.0, switches=0.0, restarts=0.0, staleness=0.0, live_readers=1.0
    )


def test_a_window_without_picks_has_no_ratios() -> None:
    """Nothing is divided by zero: a ratio of nothing is `None`, counts are counts."""
    targets = Targets.of({"a": 1, "b": 1}, {"a": "text", "b": "text"})
    assert list(mix_scalars(totals(a=0.0, b=0.0), targets).values()) == [
        *(None, None, None, None),
        *(0.0, 0.0, 1.0),
    ]


def test_one_reader_alone_is_perfectly_mixed() -> None:
    """The entropy of a mix of one is 1: there is nothing else to pick."""
    scalars = mix_scalars(totals(a=7.0), Targets.of({"a": 2}, {"a": "text"}))
    assert scalars["stream_mixing/pick_entropy"] == 1.0
    assert scalars["stream_mixing/mix_tv"] == 0.0


def test_only_the_balance_between_modalities_counts_for_modalities() -> None:
    """Readers of one modality that make up for each other leave its deviation at 0."""
    targets = Targets.of(
        {"web/a": 1, "web/b": 1, "code": 2}, {"web/a": "web", "web/b": "web", "code": "text"}
    )
    scalars = mix_scalars(totals(**{"web/a": 50.0, "web/b": 0.0, "code": 50.0}), targets)
    assert scalars["stream_mixing/mix_tv"] == 0.25
    assert scalars["stream_mixing/modality_max_dev"] == 0.0


@pytest.mark.parametrize(
    ("options", "modality"),
    [
        ({"name": "image/coco"}, "image"),
        ({"name": "web"}, "text"),
        ({"name": "image/coco", "modality": "video"}, "video"),
        ({"name": "a/b/c"}, "a"),
    ],
)
def test_the_modality_of_a_reader(options: dict[str, Any], modality: str) -> None:
    """A reader's own modality wins over the part of its name before `/`, and that over `text`."""
    assert _modality_for_reader(Reader(weight=1, open=lambda _, __: [], **options)) == modality
