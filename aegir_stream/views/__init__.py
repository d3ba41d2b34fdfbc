"""Pure folds from events to what a person looks at (see `aegir_stream.typing.View`)."""

from __future__ import annotations

from aegir_stream.views.heatmap import Heatmap, HeatmapView
from aegir_stream.views.loss_vs_reward import LossVsReward, LossVsRewardView
from aegir_stream.views.run_state import RunState, RunStateView, capture_share
from aegir_stream.views.step_metrics import Band, StepMetricsState, StepMetricsView, is_healthy

__all__ = [
    "Band",
    "Heatmap",
    "HeatmapView",
    "LossVsReward",
    "LossVsRewardView",
    "RunState",
    "RunStateView",
    "StepMetricsState",
    "StepMetricsView",
    "capture_share",
    "is_healthy",
]
