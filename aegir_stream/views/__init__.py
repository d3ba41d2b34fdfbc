"""Pure folds from events to what a person looks at (see `aegir_stream.typing.View`)."""

from __future__ import annotations

from aegir_stream.views.contrast import Contrast, contrast
from aegir_stream.views.emergence import Turnover, turnover
from aegir_stream.views.feature_reward import FeatureReward, FeatureRewardView, Totals
from aegir_stream.views.feature_table import FeatureRow, FeatureTable, rank_features
from aegir_stream.views.firing import FiringState, FiringView, Rate, Window, rates
from aegir_stream.views.heatmap import Heatmap, HeatmapView
from aegir_stream.views.length_control import LengthControlled, length_controlled
from aegir_stream.views.loss_vs_reward import LossVsReward, LossVsRewardView
from aegir_stream.views.multiplicity import adjust
from aegir_stream.views.rank_correlation import RankCorrelation, spearman
from aegir_stream.views.run_state import RunState, RunStateView, capture_share
from aegir_stream.views.step_metrics import Band, StepMetricsState, StepMetricsView, is_healthy
from aegir_stream.views.sweep import (
    SweepBaselines,
    SweepGrids,
    SweepScale,
    SweepView,
    baselines_of,
    scale_of,
)
from aegir_stream.views.sweep_columns import DISAGREEING, SweepColumn, columns_of
from aegir_stream.views.together import Narrowed, Together
from aegir_stream.views.vocabulary import Vocabulary, VocabularyView, Word, words

__all__ = [
    "DISAGREEING",
    "Band",
    "Contrast",
    "FeatureReward",
    "FeatureRewardView",
    "FeatureRow",
    "FeatureTable",
    "FiringState",
    "FiringView",
    "Heatmap",
    "HeatmapView",
    "LengthControlled",
    "LossVsReward",
    "LossVsRewardView",
    "Narrowed",
    "RankCorrelation",
    "Rate",
    "RunState",
    "RunStateView",
    "StepMetricsState",
    "StepMetricsView",
    "SweepBaselines",
    "SweepColumn",
    "SweepGrids",
    "SweepScale",
    "SweepView",
    "Together",
    "Totals",
    "Turnover",
    "Vocabulary",
    "VocabularyView",
    "Window",
    "Word",
    "adjust",
    "baselines_of",
    "capture_share",
    "columns_of",
    "contrast",
    "is_healthy",
    "length_controlled",
    "rank_features",
    "rates",
    "scale_of",
    "spearman",
    "turnover",
    "words",
]
