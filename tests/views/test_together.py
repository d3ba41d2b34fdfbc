from __future__ import annotations

from aegir_stream.events import Progress
from aegir_stream.views import (
    FiringView,
    HeatmapView,
    LossVsRewardView,
    Narrowed,
    RunStateView,
    Together,
)
from views.features import Event, line, record


def test_views_together_are_each_view_alone() -> None:
    """Each gets the events of its streams and no other."""
    events: list[Event | Progress] = [
        line(0, 1.0),
        record(0, {1: 1.0}),
        Progress(iter=1, score=0.5),
        record(1, {1: 1.0}, layer=4),
    ]
    view = Together(HeatmapView(), LossVsRewardView(), RunStateView())
    assert view.streams == ("sae_features", "completions", "progress", "grpo_metrics")
    heatmap, losses, run = view.fold(view.initial(), iter(events))
    assert heatmap == HeatmapView().fold(HeatmapView().initial(), [events[1], events[3]])  # type: ignore[list-item]
    assert [point.reward for point in losses.points()] == [1.0]
    assert run.curve == [(1, 0.5)]


def test_a_narrowed_view_folds_some_steps_and_layers() -> None:
    """Both ends count; completions have no layer; an open end has none."""
    events: list[Event] = [record(0, {1: 1.0}, step=s, layer=s % 2) for s in range(1, 9)]
    view = Narrowed(FiringView(), first_step=3, last_step=5, layers=[1])
    state = view.fold(view.initial(), events)
    assert state.seen == {1: {1: (3, 5)}}
    joined = Narrowed(LossVsRewardView(), first_step=7)
    losses = joined.fold(joined.initial(), [*events, line(0, 0.0, step=6), line(0, 1.0, step=7)])
    assert [point.reward for point in losses.points()] == [1.0]
    assert joined.streams == LossVsRewardView.streams
