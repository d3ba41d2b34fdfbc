from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.events import SAELogRecord
from aegir_stream.views import FiringState, FiringView, Turnover, rates, turnover
from views.batch import activations_of, np
from views.features import LAYERS, Event, flat, interleaved, lanes, record, seeded

seeds = st.integers(0, 2**32)


def folded(view: FiringView, *batches: list[Event]) -> FiringState:
    """Fold batches one after the other."""
    state = view.initial()
    for events in batches:
        state = view.fold(state, events)
    return state


@given(seeds, st.integers(1, 3))
def test_rates_are_those_of_the_batch(seed: int, width: int) -> None:
    """Per layer and window of steps: share, both means and the maximum over a dense array."""
    log = lanes(seeded(seed))
    state = folded(FiringView(width=width), flat(log))
    for layer in LAYERS:
        for number, window in state.layers.get(layer, {}).items():
            first, last = state.steps(number)
            last = 99 if last is None else last
            dense = np.array(
                [
                    activations_of(event)
                    for event in flat(log)
                    if isinstance(event, SAELogRecord)
                    and (event.layer_index, event.pass_) == (layer, None)
                    and first <= max(1, event.step) <= last
                ]
            )
            for rate in rates(window):
                column = dense[:, rate.latent]
                assert rate.firing_rate == pytest.approx(np.count_nonzero(column) / len(column))
                assert rate.mean == pytest.approx(column.mean())
                assert rate.mean_active == pytest.approx(column[column != 0].mean())
                assert rate.highest == column[column != 0].max()
            assert set(window.latents) == set(np.nonzero(dense.any(axis=0))[0])


@given(seeds, st.sampled_from([None, 1, 2]))
def test_the_order_of_records_changes_nothing(seed: int, width: int | None) -> None:
    """Lanes in any order, in any batches, with windows that had to be widened: the same rates."""
    draw = seeded(seed)
    log = lanes(draw, most_steps=9)
    view = FiringView(width=width, most_windows=3)
    one, other = interleaved(log, draw), interleaved(log, draw)
    cut = draw.randint(0, len(other))
    state, again = folded(view, one), folded(view, other[:cut], other[cut:])
    assert (state.width, state.seen, state.non_finite) == (
        again.width,
        again.seen,
        again.non_finite,
    )
    for layer, windows in state.layers.items():
        assert len(windows) <= 3
        for number, window in windows.items():
            for rate, same in zip(rates(window), rates(again.layers[layer][number]), strict=True):
                assert (rate.latent, rate.firing_rate, rate.highest) == (
                    same.latent,
                    same.firing_rate,
                    same.highest,
                )
                assert rate.mean == pytest.approx(same.mean, abs=1e-12)


def test_a_long_run_has_wider_windows_and_not_more() -> None:
    """Past the bound two windows become one, and nothing of them is lost."""
    view = FiringView(width=1, most_windows=4)
    state = folded(view, [record(0, {step % 3: float(step)}, step=step) for step in range(1, 20)])
    assert (state.width, sorted(state.layers[0])) == (8, [0, 1, 2])
    assert [state.steps(number) for number in (0, 1)] == [(1, 8), (9, 16)]
    whole = state.whole(0)
    assert (whole.tokens, whole.latents[0].tokens, whole.latents[0].highest) == (19, 6, 18.0)
    assert state.seen[0] == {1: (1, 19), 2: (2, 17), 0: (3, 18)}
    assert [state.layers[0][number].tokens for number in (0, 1, 2)] == [8, 8, 3]


def test_emergence_and_extinction_are_told_window_by_window() -> None:
    """New and gone latents, their share, and the overlap with the window before and the first."""
    fired = {1: (1, 2, 3), 2: (2, 3), 3: (3, 4, 5, 6), 5: (7,)}
    events: list[Event] = [record(0, dict.fromkeys(k, 1.0), step=s) for s, k in fired.items()]
    first, second, third, last = turnover(folded(FiringView(width=1), events), 0)
    assert (first.active, first.jaccard, first.turnover, first.emerged) == (3, None, None, ())
    assert (second.emerged, second.vanished, second.jaccard) == ((), (1,), 2 / 3)
    assert (third.emerged, third.vanished, third.turnover) == ((4, 5, 6), (2,), 4 / 6)
    assert last == Turnover(
        layer=0,
        first_step=5,
        last_step=5,
        tokens=1,
        active=1,
        emerged=(7,),
        vanished=(3, 4, 5, 6),
        jaccard=0.0,
        turnover=1.0,
        jaccard_first=0.0,
    )
    assert third.jaccard_first == 1 / 6


def test_a_latent_that_fires_too_seldom_is_not_active() -> None:
    """`least_rate` is a share of the window's tokens, and reaching it is enough."""
    events: list[Event] = [record(0, {1: 1.0} if t < 2 else {2: 1.0}, token=t) for t in range(10)]
    state = folded(FiringView(width=1), events)
    assert [
        t.active for rate in (0.0, 0.2, 0.21, 0.81) for t in turnover(state, 0, least_rate=rate)
    ] == [2, 2, 1, 0]
