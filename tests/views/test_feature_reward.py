from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.events import Completion
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import replay
from aegir_stream.sinks import JournalSink
from aegir_stream.typing import Append
from aegir_stream.views import FeatureRewardView, VocabularyView, contrast, length_controlled
from aegir_stream.views.contrast import sign_flip_floor
from aegir_stream.views.reservoir import Activations
from core.runs import drive
from views.batch import batch, contrast_of, differing, members, np, partial_of
from views.features import LAYERS, Event, flat, interleaved, lanes, line, record, seeded

# The generator is seeded rather than drawn from: a log has hundreds of choices.
seeds = st.integers(0, 2**32)


def folded(view: Any, *batches: list[Event]) -> Any:
    """Fold batches one after the other."""
    state = view.initial()
    for events in batches:
        state = view.fold(state, events)
    return state


@settings(max_examples=300)
@given(seeds)
def test_any_batching_and_any_interleaving_give_the_same(seed: int) -> None:
    """Records before their completion or after it, lanes apart by any number of steps: one state.

    Every rank has told of a completion; nothing else is known of the order but that of each lane.
    """
    draw = seeded(seed)
    log = lanes(draw)
    one, other = interleaved(log, draw), interleaved(log, draw)
    cut = draw.randint(0, len(other))
    for view in (FeatureRewardView(lag=0, reservoir=7), VocabularyView(lag=0, gate=0.3)):
        state, again = folded(view, one), folded(view, other[:cut], other[cut:])
        assert state == again
        assert state.joining.late == 0
    kept = FeatureRewardView(lag=99, reservoir=7)
    view = FeatureRewardView(lag=0, reservoir=7)
    assert kept.totals(folded(kept, one)) == view.totals(folded(view, other))


@given(seeds, st.sampled_from(["mean", "share", "presence"]))
def test_the_streamed_statistics_are_those_of_the_batch(seed: int, summary: Any) -> None:
    """Contrast, standard error, effect and partial correlation as their formulas have it."""
    draw = seeded(seed)
    log = lanes(draw)
    view = FeatureRewardView(lag=0, summary=summary)
    totals = view.totals(folded(view, interleaved(log, draw)))
    for layer in LAYERS:
        everything = batch(flat(log), layer, summary=summary)
        compared = differing(everything)
        groups = len(members(compared))
        sums = totals.layers.get(layer)
        if sums is None:
            assert not len(everything.rewards)
            continue
        assert (sums.groups, sums.completions) == (groups, len(compared.rewards))
        assert sums.equal_groups == len(members(everything)) - groups
        for latent, feature in sums.features.items():
            assert feature.completions == np.count_nonzero(compared.activations[:, latent])
            _agrees(contrast(sums, feature), compared, latent, feature.groups)
            _agrees_with_length(length_controlled(sums, feature), compared, latent, feature.groups)


def _agrees(found: Any, compared: Any, latent: int, active: int) -> None:
    if len(members(compared)) < 2:
        assert found is None
        return
    difference, error, p, effect = contrast_of(compared, latent)
    assert found.difference == pytest.approx(difference, abs=1e-9)
    assert found.standard_error == pytest.approx(error, abs=1e-7)
    if error > 1e-6 and abs(difference) > 1e-9:
        assert found.p_value == pytest.approx(max(p, sign_flip_floor(active)), rel=1e-4)
    if not math.isnan(effect) and abs(effect) < 1e6:
        assert found.effect_size == pytest.approx(effect, rel=1e-6, abs=1e-9)


def _agrees_with_length(found: Any, compared: Any, latent: int, active: int) -> None:
    if found is None:
        return
    correlation, p = partial_of(compared, latent)
    assert found.correlation == pytest.approx(correlation, abs=1e-6)
    if 1e-12 < p < 1 and abs(correlation) > 1e-9:
        assert found.p_value == pytest.approx(max(p, sign_flip_floor(active)), rel=1e-3)


def test_equal_weights_make_the_contrast_a_paired_t_test() -> None:
    """Where all groups have the same counts, the p-value is that of scipy's one-sample t."""
    stats = pytest.importorskip("scipy.stats")
    events: list[Event] = []
    draw = np.random.default_rng(0)
    contrasts = []
    for step in range(1, 31):
        values = draw.exponential(size=4) + np.array([0.5, 0.5, 0, 0])
        contrasts.append(values[:2].mean() - values[2:].mean())
        for i, value in enumerate(values):
            events += [line(i, float(i < 2), step=step), record(i, {3: value}, step=step)]
    view = FeatureRewardView()
    layer = view.totals(folded(view, events)).layers[0]
    found = contrast(layer, layer.features[3])
    expected = stats.ttest_1samp(contrasts, 0.0)
    assert found is not None
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_a_completion_without_a_record_of_a_latent_counts_0_and_one_without_any_does_not() -> None:
    """Not among the K hardest is 0; not captured is unknown."""
    events: list[Event] = [
        line(0, 1.0),
        line(1, 0.0),
        line(2, 0.0),
        record(0, {5: 2.0}),
        record(0, {}, token=1),
        record(1, {6: 1.0}),
    ]
    view = FeatureRewardView()
    totals = view.totals(folded(view, events))
    layer = totals.layers[0]
    assert (totals.completions, totals.uncaptured) == (2, 1)
    assert (layer.completions, layer.features[5].wd) == (2, 0.5 * 1.0)
    assert layer.features[6].wd == 0.5 * -1.0


def test_what_does_not_count_is_counted() -> None:
    """Unknown rewards, later iterations, other passes and lost lines leave a number behind."""
    events: list[Event] = [
        line(0, 1.0),
        line(1, math.nan),
        line(2, 1.0, iteration=1),
        line(3, 1.0, pass_="eval"),
        *(record(i, {5: 1.0}) for i in range(5)),
        record(0, {5: 100.0}, pass_="decode"),
        record(0, {5: math.inf, 6: math.nan}, token=1),
    ]
    view = FeatureRewardView()
    state = folded(view, events)
    totals = view.totals(state)
    assert (totals.completions, totals.without_reward, totals.without_line) == (1, 2, 2)
    assert state.joining.non_finite == 2
    (sampled,) = totals.reservoir.ordered()
    assert sampled.layers == {0: Activations.of({5: 0.5})}


@pytest.mark.parametrize(("pass_", "total"), [("decode", 100.0), ("eval", 7.0)])
def test_another_pass_is_folded_when_asked_for(pass_: Any, total: float) -> None:
    """Records of a pass join the completions that they are of: an evaluation's are its own."""
    events: list[Event] = [
        line(0, 1.0),
        line(0, 0.0, pass_="eval"),
        record(0, {5: 1.0}),
        record(0, {5: 100.0}, pass_="decode"),
        record(0, {5: 7.0}, pass_="eval"),
    ]
    view = FeatureRewardView(pass_=pass_)
    (sampled,) = view.totals(folded(view, events)).reservoir.ordered()
    assert sampled.layers == {0: Activations.of({5: total})}
    assert sampled.reward == float(pass_ == "decode")


@pytest.mark.parametrize(
    ("name", "expected"), [("R", [2.0, 3.0]), ("advantage", [-2.0, -3.0]), ("style", [5.0])]
)
def test_the_reward_is_the_one_that_is_asked_for(name: str, expected: list[float]) -> None:
    """The sum, the advantage, or one function; where that abstained, the completion is left out."""
    events: list[Event] = [
        line(0, 2.0, rewards={"style": 5.0}),
        line(1, 3.0, rewards={"style": None}),
        record(0, {5: 1.0}),
        record(1, {5: 1.0}),
    ]
    view = FeatureRewardView(reward=name)
    totals = view.totals(folded(view, events))
    assert [one.reward for one in totals.reservoir.ordered()] == expected


def test_a_latent_in_few_groups_cannot_be_certain() -> None:
    """Three groups that agree perfectly give no less than flipping three signs does."""
    events: list[Event] = []
    for step in range(1, 4):
        for i in range(4):
            events += [line(i, float(i < 2), step=step), record(i, {3: float(i < 2)}, step=step)]
    view = FeatureRewardView()
    layer = view.totals(folded(view, events)).layers[0]
    found = contrast(layer, layer.features[3])
    assert found is not None
    assert (found.difference, found.standard_error, found.p_value) == (1.0, 0.0, 0.25)


def test_a_latent_that_never_varies_shows_nothing() -> None:
    """What is the same in all completions of a group is no difference, rounding or not."""
    events: list[Event] = []
    for step in range(1, 20):
        for i in range(5):
            events += [
                line(i, [0.1, 0.7, 0.3, 0.9, 0.2][i], step=step, length=i),
                record(i, {3: 0.1}, step=step),
            ]
    view = FeatureRewardView()
    layer = view.totals(folded(view, events)).layers[0]
    found = contrast(layer, layer.features[3])
    assert found is not None
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert length_controlled(layer, layer.features[3]) is None


def test_memory_goes_with_what_is_open_and_not_with_the_run() -> None:
    """A run ten times as long leaves a state of the same size."""

    def size(steps: int, tokens: int) -> int:
        view = FeatureRewardView(reservoir=16)
        state = view.initial()
        for step in range(1, steps + 1):
            events: list[Event] = [line(i, i / 4, step=step, group=i % 2) for i in range(8)]
            events += [
                record(i, {i: 1.0, 9: 0.5 + i}, step=step, token=token)
                for i in range(8)
                for token in range(tokens)
            ]
            state = view.fold(state, events)
        assert state.joining.late == 0
        return len(repr(state))

    # Counters get more digits.
    assert size(200, 20) < 1.3 * size(20, 2)


def test_a_rank_that_stops_recording_holds_nothing_up_for_long() -> None:
    """Beyond `open_steps` the oldest step counts as it is; what comes of it then is late."""
    view = FeatureRewardView(open_steps=5)
    state = view.initial()
    for step in range(1, 41):
        both: list[Event] = [line(r, float(r), step=step, rank=r) for r in (0, 1)]
        state = view.fold(state, [*both, record(0, {2: 1.0}, step=step)])
    assert len(state.joining.steps) == 5
    assert view.totals(state).uncaptured == 40
    state = view.fold(state, [record(1, {2: 1.0}, step=3)])
    assert state.joining.late == 1
    assert view.totals(state).completions == 40


def test_records_of_a_rank_that_nobody_knows_hold_their_step_open() -> None:
    """Whose they are is known with their line; however late it comes, none of them is lost."""
    view = FeatureRewardView(lag=0)
    state = view.initial()
    for rank in (0, 1):
        of_rank: list[Event] = [record(rank, {2: 1.0}, step=step) for step in range(1, 9)]
        state = view.fold(state, of_rank)
    for rank in (0, 1):
        of_rank = [line(rank, float(rank), step=step, rank=rank) for step in range(1, 9)]
        state = view.fold(state, of_rank)
    assert (state.joining.settled, state.joining.late) == (7, 0)
    assert view.totals(state).completions == 16


def test_a_run_of_two_ranks_is_replayed_without_loss(tmp_path: Path) -> None:
    """One rank writes three times as much, so its lane is read many steps behind the other's."""
    lanes: list[list[Event]] = [[], []]
    for step in range(1, 61):
        for rank, tokens in ((0, 20), (1, 60)):
            told = line(rank, float(rank), step=step, rank=rank, length=tokens + step % 3)
            fired = {(step + k) % 40 + rank: 0.5 + k for k in range(16)}
            records = [record(rank, fired, step=step, token=t) for t in range(tokens)]
            lanes[rank] += [told, *records]
    run = RunDirectory.at(tmp_path)
    journals = [JournalSink(run, rank=rank, world_size=2) for rank in (0, 1)]
    for journal in journals:
        drive(journal.open())
    for journal, events in zip(journals, lanes, strict=True):
        for event in events:
            stream = "completions" if isinstance(event, Completion) else "sae_features"
            data = codec.encode(event)
            drive(journal.write(Append(stream=stream, data=data, records=1, step=event.step)))
        drive(journal.aclose())
    view = FeatureRewardView()
    state = replay(run, view).state
    assert (state.joining.late, state.joining.settled) == (0, 58)
    in_step = sorted((e for lane in lanes for e in lane), key=lambda event: event.step)
    totals = view.totals(state)
    assert totals == view.totals(folded(view, in_step))
    assert (totals.completions, totals.layers[0].groups) == (120, 60)


def test_the_control_deals_out_activations_within_each_group() -> None:
    """Every group keeps its activations, its rewards and its lengths; who has which is chance."""
    events: list[Event] = []
    for step in range(1, 201):
        for i in range(6):
            events += [
                line(i, float(i % 2), step=step, length=i + 1),
                record(i, {3: 1.0 + (i % 2)}, step=step),
            ]
    view = FeatureRewardView()
    totals = view.totals(folded(view, events))
    real, control = totals.layers[0], totals.control[0]
    found, chance = (contrast(s, s.features[3]) for s in (real, control))
    assert found is not None
    assert chance is not None
    assert (real.yy, real.e, real.b) == (control.yy, control.e, control.b)
    assert real.features[3].xx == pytest.approx(control.features[3].xx)
    assert found.difference == 1.0
    assert abs(chance.difference) < 4 * chance.standard_error
    assert 0 < chance.standard_error < 0.1
