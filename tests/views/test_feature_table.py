from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.views import FeatureRewardView, FeatureTable, Totals, rank_features
from views.batch import batch, stats
from views.features import LAYERS, Event, flat, lanes, seeded
from views.policies import PLANTED, planted


def totals(events: list[Event], *, reservoir: int = 64) -> Totals:
    """Fold events."""
    view = FeatureRewardView(reservoir=reservoir)
    return view.totals(view.fold(view.initial(), events))


@pytest.mark.parametrize(("seed", "sign"), [(0, 1), (1, -1), (2, 1), (3, -1)])
def test_the_planted_latent_is_ranked_first_with_its_sign(seed: int, sign: int) -> None:
    """Among 300 latents, of which a third go with the length that the reward depends on, too."""
    first = rank_features(totals(planted(seed, sign=sign))).rows[0]
    assert first.latent == PLANTED
    assert first.p_adjusted is not None
    assert first.p_adjusted < 0.05
    assert first.contrast is not None
    assert first.length_controlled is not None
    assert first.rank is not None
    assert first.contrast.low * sign > 0
    assert first.contrast.high * sign > 0
    assert first.length_controlled.correlation * sign > 0.3
    assert first.rank.rho * sign > 0


def test_without_length_control_latents_that_only_go_with_the_length_are_found() -> None:
    """Which is what the control is for: presence grows with length, and so does the reward."""
    view = FeatureRewardView(summary="presence", reservoir=64)
    # Three times the steps: the length is a weaker signal than the planted latent.
    everything = view.totals(view.fold(view.initial(), planted(0, steps=45)))
    plain = rank_features(everything, test="contrast")
    controlled = rank_features(everything)
    confounded = {row.latent for row in plain.rows[: plain.found]} - {PLANTED}
    assert len(confounded & set(range(100))) >= 5
    assert {row.latent for row in controlled.rows[: controlled.found]} == {PLANTED}


def test_with_shuffled_rewards_nothing_is_found() -> None:
    """At the 5 % level, in at least 19 of 20 runs; there is no choice of seeds in 0 to 19."""
    tables = [rank_features(totals(planted(seed, shuffled=True))) for seed in range(20)]
    assert sum(table.found > 0 for table in tables) <= 1
    assert min(table.tested for table in tables) > 200


@given(st.integers(0, 2**32))
def test_the_rank_correlation_is_scipys_while_the_reservoir_holds_all(seed: int) -> None:
    """Over the completions of all groups, those of groups with equal rewards included."""
    log = lanes(seeded(seed))
    table = rank_features(totals(flat(log)), least_completions=1)
    for row in table.rows:
        data = batch(flat(log), row.layer)
        if row.rank:
            assert row.rank.n == len(data.rewards)
            expected = stats.spearmanr(data.activations[:, row.latent], data.rewards)
            assert row.rank.rho == pytest.approx(expected.statistic, abs=1e-12)
    assert {row.layer for row in table.rows} <= set(LAYERS)


def test_a_latent_in_few_completions_is_told_but_not_tested() -> None:
    """It stands behind all others, and costs them nothing."""
    table = rank_features(totals(planted(0)), least_completions=100)
    behind = table.rows[table.tested :]
    assert behind
    assert all(row.completions < 100 and row.p_value is None for row in behind)
    assert all(row.completions >= 100 for row in table.rows[: table.tested])
    fewer = {row.latent: row.p_adjusted for row in table.rows}
    all_of_them = rank_features(totals(planted(0)), least_completions=1)
    assert all_of_them.tested > table.tested
    assert (fewer[PLANTED] or 1) < (all_of_them.rows[0].p_adjusted or 0)


def test_nothing_is_no_table() -> None:
    """A run without completions has no rows and no error."""
    empty = FeatureTable(rows=(), tested=0, found=0, found_in_control=0, q=0.05)
    assert rank_features(totals([])) == empty
