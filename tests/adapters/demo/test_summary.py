from __future__ import annotations

from math import isnan
from pathlib import Path

import pytest

from aegir_adapters.demo.summary import (
    EARLY_STEPS,
    RecordedView,
    final_reward,
    summarise,
)
from aegir_stream.events import Completion, GRPOMetrics, SAELogRecord


def metrics(step: int, **figures: float) -> GRPOMetrics:
    """Return the metrics of a step."""
    return GRPOMetrics(step=step, ts=0.0, **figures)  # type: ignore[arg-type]


def sae_record(step: int, *, completion: int, layer: int = 0) -> SAELogRecord:
    """Return a record in which feature `completion % 2` fired."""
    return SAELogRecord(
        step=step,
        token_index=0,
        layer_index=layer,
        top_feature_indices=(completion % 2,),
        top_feature_activations=(1.0,),
        reconstruction_loss=0.0,
        completion=completion,
    )


def sampled(step: int, *, completion: int) -> Completion:
    """Return a completion that is rewarded if its id is odd."""
    reward = float(completion % 2)
    return Completion(
        step=step,
        completion=completion,
        rank=0,
        group=0,
        rewards={"verifier": reward},
        reward=reward,
        advantage=reward - 0.5,
        length=1,
        terminated=True,
    )


def test_the_final_reward_is_the_mean_of_the_last_ten_steps() -> None:
    """Earlier steps, and steps without a reward, do not count."""
    steps = [metrics(step, reward_mean=0.0) for step in range(1, 11)]
    steps += [metrics(step, reward_mean=0.9) for step in range(11, 21)]
    assert final_reward([*steps, metrics(21)]) == pytest.approx(0.9)


def test_nothing_recorded_has_no_figures() -> None:
    """Shares and means of an empty log are not a number, rather than a guess."""
    assert isnan(final_reward([]))


def test_a_summary_counts_what_the_log_holds(tmp_path: Path) -> None:
    """Records, layers, completions and features are those of the events folded in."""
    view = RecordedView()
    state = view.initial()
    late = EARLY_STEPS + 1
    records = [
        sae_record(step, completion=number, layer=layer)
        for step in (1, late)
        for number in range(20)
        for layer in (2, 0)
    ]
    state = view.fold(state, records)
    state = view.fold(state, [sampled(s, completion=n) for s in (1, late) for n in range(20)])
    state = view.fold(state, [metrics(1, reward_mean=0.4, dropped=3)])
    summary = summarise(state, seed=5, reward_before=0.3, phase_seconds={}, run_dir=tmp_path)
    assert (summary.records, summary.layers, summary.completions) == (80, (0, 2), 40)
    assert (summary.steps, summary.dropped, summary.seed) == (1, 3, 5)
    assert (summary.reward_before, summary.reward_after) == (0.3, 0.4)
    assert [(f.layer_index, f.feature, f.support) for f in summary.features] == [
        (0, 0, 10),
        (0, 1, 10),
        (2, 0, 10),
    ]
