"""Array-backed twins of the core's views, for dictionaries of many latents.

`ArrayFeatureRewardView` and `ArrayFiringView` fold the same events, take the same options and end
in the same `Totals` and `FiringState` as `FeatureRewardView` and `FiringView`. They need numpy.
"""

from __future__ import annotations

from aegir_adapters.analysis.feature_reward import ArrayFeatureReward, ArrayFeatureRewardView
from aegir_adapters.analysis.firing import ArrayFiring, ArrayFiringView

__all__ = ["ArrayFeatureReward", "ArrayFeatureRewardView", "ArrayFiring", "ArrayFiringView"]
