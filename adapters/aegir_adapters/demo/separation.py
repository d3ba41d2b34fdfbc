"""Which features tell completions that were rewarded from those that were not."""

from __future__ import annotations

from collections import defaultdict
from math import sqrt
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aegir_stream.events import Completion, SAELogRecord

Feature: TypeAlias = tuple[int, int]
"""Layer index and feature index."""

CompletionKey: TypeAlias = tuple[int, int]
"""Step and completion id."""

ROUNDING = 1e-9
"""Deviation, relative to the mean, up to which values count as equal."""


class FeatureContrast(Struct, frozen=True, kw_only=True):
    """How one feature's activation differs between rewarded and unrewarded completions.

    Attributes:
        layer_index: layer that the feature was read at.
        feature: index of the feature in that layer's SAE.
        correlation: point-biserial correlation of activation and being rewarded, in [-1, 1].
        mean_rewarded: mean activation in rewarded completions, in the SAE's own units.
        mean_unrewarded: the same in unrewarded ones.
        support: completions in which the feature fired at all.
    """

    layer_index: int
    feature: int
    correlation: float
    mean_rewarded: float
    mean_unrewarded: float
    support: int


def separating_features(
    records: Iterable[SAELogRecord],
    completions: Iterable[Completion],
    *,
    top: int = 3,
    min_support: int = 10,
) -> tuple[FeatureContrast, ...]:
    """Return the features that separate best, the strongest correlation of either sign first.

    A completion counts as rewarded if its advantage is positive, as unrewarded if it is negative:
    it earned more, or less, than the mean of its own group, which is the contrast that GRPO learns
    from. A group of equals says nothing and is left out. A feature's activation in a completion is
    its mean over the completion's tokens, 0 where it was not recorded. Features that fired in
    fewer than `min_support` completions are left out. Records of other completions are ignored.
    """
    judged = {(c.step, c.completion): c for c in completions if c.advantage != 0}
    rewarded = {key: c.advantage > 0 for key, c in judged.items()}
    activations = mean_activations(records, {key: c.length for key, c in judged.items()})
    contrasts = [
        contrast(feature, values, rewarded)
        for feature, values in activations.items()
        if len(values) >= min_support
    ]
    contrasts.sort(key=lambda c: (-abs(c.correlation), c.layer_index, c.feature))
    return tuple(contrasts[:top])


def mean_activations(
    records: Iterable[SAELogRecord], lengths: Mapping[CompletionKey, int]
) -> dict[Feature, dict[CompletionKey, float]]:
    """Return each feature's mean activation over the tokens of each completion it fired in."""
    means: dict[Feature, dict[CompletionKey, float]] = defaultdict(lambda: defaultdict(float))
    for record in records:
        if record.completion is None or (record.step, record.completion) not in lengths:
            continue
        key = (record.step, record.completion)
        for feature, activation in zip(
            record.top_feature_indices, record.top_feature_activations, strict=True
        ):
            means[record.layer_index, feature][key] += activation / lengths[key]
    return means


def contrast(
    feature: Feature,
    activations: Mapping[CompletionKey, float],
    rewarded: Mapping[CompletionKey, bool],
) -> FeatureContrast:
    """Compare one feature over all completions in `rewarded`; `activations` may leave out zeros.

    The point-biserial correlation is ``(m1 - m0) / s * sqrt(p * (1 - p))`` with the means of both
    classes, the population standard deviation ``s`` of all and the share ``p`` that is rewarded;
    0 where one class is empty or nothing varies.
    """
    count = len(rewarded)
    positives = sum(rewarded.values())
    total_rewarded = sum(a for key, a in activations.items() if rewarded[key])
    total = sum(activations.values())
    mean_rewarded = total_rewarded / positives if positives else 0.0
    mean_unrewarded = (total - total_rewarded) / (count - positives) if count > positives else 0.0
    mean = total / count
    square_deviations = sum((a - mean) ** 2 for a in activations.values())
    deviation = sqrt((square_deviations + (count - len(activations)) * mean**2) / count)
    balance = sqrt(positives * (count - positives)) / count
    varies = deviation > ROUNDING * abs(mean)
    difference = mean_rewarded - mean_unrewarded
    return FeatureContrast(
        layer_index=feature[0],
        feature=feature[1],
        correlation=difference / deviation * balance if varies else 0.0,
        mean_rewarded=mean_rewarded,
        mean_unrewarded=mean_unrewarded,
        support=len(activations),
    )
