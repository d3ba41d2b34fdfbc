from __future__ import annotations

from itertools import pairwise, product
from math import exp, lgamma, log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.mixing import (
    SCALARS,
    Band,
    MixTotals,
    Targets,
    aggregate_step_metrics,
    healthy_bands,
    mix_scalars,
    total_step_metrics,
)
from aegir_adapters.mixing.bands import _divergence_high
from aegir_stream.errors import OptionError

from .streams import Source, mixer_of

RANDOM = [name for name in SCALARS if not name.endswith(("reader_restarts", "live_readers_min"))]
MIXES = [[1.0, 1.0, 1.0, 1.0], [0.7, 0.2, 0.09, 0.01], [0.5, 0.5], [1.0]]


def targets_of(weights: list[float]) -> Targets:
    """Return targets of readers of three modalities."""
    names = [f"m{n % 3}/{n}" for n in range(len(weights))]
    return Targets.of(
        dict(zip(names, weights, strict=True)), {name: name.split("/")[0] for name in names}
    )


def healthy(weights: list[float], steps: int, per_step: int, chance: Random) -> MixTotals:
    """Return a window of independent picks on one rank."""
    targets = targets_of(weights)
    names, shares = list(targets.weights), list(targets.weights.values())
    drawn = chance.choices(names, shares, k=steps * per_step)
    last = dict.fromkeys(names, -1) | {name: n // per_step for n, name in enumerate(drawn)}
    stays = sum(a == b for a, b in pairwise(drawn))
    return MixTotals(
        picks={name: float(drawn.count(name)) for name in names},
        stays=float(stays),
        switches=float(len(drawn) - 1 - stays),
        restarts=0.0,
        staleness=float(steps - 1 - min(last.values())),
        live_readers=float(len(names)),
        steps=float(steps),
    )


@pytest.mark.parametrize("weights", MIXES)
@pytest.mark.parametrize(("steps", "per_step"), [(1, 4), (10, 8), (40, 50)])
def test_healthy_windows_leave_their_bands_no_more_often_than_stated(
    weights: list[float], steps: int, per_step: int
) -> None:
    """Of 600 healthy windows, at a false alarm rate of 5 %, no metric leaves its band in 5 %."""
    chance, targets = Random(0), targets_of(weights)  # noqa: S311 - a simulation
    alarms = dict.fromkeys(RANDOM, 0)
    for _ in range(600):
        window = healthy(weights, steps, per_step, chance)
        bands = healthy_bands(window, targets, false_alarm=0.05, slack_steps=0)
        scalars = mix_scalars(window, targets)
        for name in RANDOM:
            alarms[name] += not bands[name].holds(scalars[name])
    assert max(alarms.values()) <= 600 * 0.05


@given(
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=3),
    st.integers(1, 14),
    st.sampled_from([0.3, 0.05, 1e-3]),
)
def test_the_bound_on_relative_entropy_holds_exactly(
    weights: list[float], n: int, a: float
) -> None:
    """Summed over all outcomes, the chance to exceed it is at most what was asked for."""
    shares = [w / sum(weights) for w in weights]
    bound, beyond = _divergence_high(len(shares), n, a), 0.0
    for counts in product(range(n + 1), repeat=len(shares)):
        if sum(counts) != n:
            continue
        divergence = sum(c / n * log(c / n / w) for c, w in zip(counts, shares, strict=True) if c)
        if divergence > bound:
            terms = (c * log(w) - lgamma(c + 1) for c, w in zip(counts, shares, strict=True))
            beyond += exp(lgamma(n + 1) + sum(terms))
    assert beyond <= a


def window_of(sources: list[Source], picks: int, *, steps: int = 16) -> tuple[MixTotals, Targets]:
    """Return a window of a mixer that was warmed up with as many picks."""
    mixer = mixer_of(sources, shards=4)
    stream = iter(mixer)
    mixer.begin_step(0)
    for step in range(1, steps + 1):
        for _ in range(picks // steps):
            next(stream)
        mixer.begin_step(step)
    return total_step_metrics(mixer.drain_step_metrics(), mixer.targets), mixer.targets


def alarms(totals: MixTotals, targets: Targets) -> set[str]:
    """Return the metrics that are outside of their bands."""
    bands = healthy_bands(totals, targets)
    return {
        name.removeprefix("stream_mixing/")
        for name, value in mix_scalars(totals, targets).items()
        if not bands[name].holds(value)
    }


EVEN = [Source(f"m{n}/x", 10_000) for n in range(4)]


def test_a_healthy_mixer_raises_no_alarm() -> None:
    """What `StreamMixer` does while its readers last is what the bands call healthy."""
    assert alarms(*window_of(EVEN, 256)) == set()


def test_a_collapsed_mix_raises_the_alarms_of_the_mix() -> None:
    """A reader that takes every pick is outside of every band that is about shares."""
    names = [source.name for source in EVEN]
    targets = Targets.of(dict.fromkeys(names, 1.0), {name: name[:2] for name in names})
    totals = MixTotals(
        picks={name: 256.0 * (name == "m0/x") for name in names},
        stays=252.0,
        switches=0.0,
        restarts=0.0,
        staleness=16.0,
        live_readers=4.0,
        steps=16.0,
    )
    assert alarms(totals, targets) == {
        *("mix_tv", "modality_max_dev", "pick_entropy", "switch_rate", "staleness_max_steps")
    }


def test_a_short_reader_raises_the_alarm_of_restarts_alone() -> None:
    """A reader that begins anew within a window is outside of its band, unless that is declared."""
    totals, targets = window_of([*EVEN[:3], Source("m3/x", 16, on_end="cycle")], 256)
    assert alarms(totals, targets) == {"reader_restarts"}
    allowed = healthy_bands(totals, targets, restarts=1000)
    assert allowed["stream_mixing/reader_restarts"] == Band(0.0, 1000.0)


def test_a_reader_that_ended_raises_the_alarm_of_live_readers() -> None:
    """Fewer live readers than configured is an alarm in the first window that sees it."""
    totals, targets = window_of([*EVEN[:3], Source("m3/x", 0)], 16, steps=1)
    assert "live_readers_min" in alarms(totals, targets)


def test_a_window_without_picks_raises_no_alarm() -> None:
    """Where nothing was picked there is nothing to judge."""
    mixer = mixer_of(EVEN)
    raw = mixer.drain_step_metrics()
    totals = window_of(EVEN, 0)[0]
    assert alarms(totals, mixer.targets) == set()
    assert aggregate_step_metrics(raw, mixer.targets)["stream_mixing/mix_tv"] is None


@pytest.mark.parametrize("false_alarm", [0.0, 1.0, -1.0, float("nan")])
def test_a_false_alarm_rate_is_a_probability(false_alarm: float) -> None:
    """What is not strictly between 0 and 1 is refused."""
    with pytest.raises(OptionError, match="false_alarm"):
        healthy_bands(*window_of(EVEN, 16), false_alarm=false_alarm)
