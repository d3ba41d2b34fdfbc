"""The latents of a run by how well they go with the reward, with what chance would do beside it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from aegir_stream.views.contrast import Contrast, contrast
from aegir_stream.views.feature_reward import Totals
from aegir_stream.views.group_sums import FeatureSums, LayerSums
from aegir_stream.views.length_control import LengthControlled, length_controlled
from aegir_stream.views.multiplicity import adjust
from aegir_stream.views.rank_correlation import RankCorrelation, RankedRewards
from aegir_stream.views.reservoir import Reservoir

__all__ = ["FeatureRow", "FeatureTable", "Test", "rank_features"]

Test: TypeAlias = Literal["length_controlled", "contrast"]
"""Which p-value decides."""


class FeatureRow(msgspec.Struct, frozen=True, kw_only=True):
    """One latent against the reward.

    Attributes:
        layer: hooked decoder layer.
        latent: index of the latent.
        completions: completions with differing rewards in their group in which it is active.
        groups: groups of which that is true of any.
        contrast: rewarded against unrewarded completions of the same group.
        length_controlled: the same with the length held fixed, as a partial correlation.
        rank: rank correlation with the reward, over the sampled completions of all groups.
        p_value: of the test that decides; `None` if the latent was not tested.
        p_adjusted: adjusted for the number of latents that were tested.
        control: the contrast with the activations of each group dealt out at random.
        control_p_adjusted: adjusted p-value of the test in that control.
    """

    layer: int
    latent: int
    completions: int
    groups: int
    contrast: Contrast | None
    length_controlled: LengthControlled | None
    rank: RankCorrelation | None
    p_value: float | None
    p_adjusted: float | None
    control: Contrast | None
    control_p_adjusted: float | None


class FeatureTable(msgspec.Struct, frozen=True, kw_only=True):
    """All latents that were active in any group with differing rewards, the clearest first.

    Attributes:
        rows: by p-value, then by the size of the effect; those that were not tested last.
        tested: latents that were tested.
        found: those whose adjusted p-value is at most `q`.
        found_in_control: those that the control would have called found, where nothing is.
        q: share of false findings that is put up with.
    """

    rows: tuple[FeatureRow, ...]
    tested: int
    found: int
    found_in_control: int
    q: float


def rank_features(
    totals: Totals,
    *,
    test: Test = "length_controlled",
    q: float = 0.05,
    level: float = 0.95,
    least_completions: int = 10,
) -> FeatureTable:
    """Return the latents in order of how clearly they go with the reward.

    A latent that is active in few completions cannot show anything, and would cost the others
    their significance; how often it is active does not depend on the reward if there is no
    connection, so leaving it untested is fair (Bourgon, Gentleman & Huber, PNAS 107, 2010,
    9546-9551).

    Args:
        totals: of a `FeatureRewardView`.
        test: which p-value decides.
        q: share of false findings among the findings that is put up with.
        level: confidence of the intervals.
        least_completions: completions in which a latent is active, for it to be tested.
    """
    real = _p_values(totals.layers, test, least_completions)
    control = _p_values(totals.control, test, least_completions)
    ranked = {layer: _Ranks(totals.reservoir, layer) for layer in totals.layers}
    rows = [
        FeatureRow(
            layer=index,
            latent=latent,
            completions=sums.completions,
            groups=sums.groups,
            contrast=contrast(layer, sums, level=level),
            length_controlled=length_controlled(layer, sums),
            rank=ranked[index].of(latent, level),
            p_value=real.get((index, latent), (None, None))[0],
            p_adjusted=real.get((index, latent), (None, None))[1],
            control=_control(totals, index, latent, level),
            control_p_adjusted=control.get((index, latent), (None, None))[1],
        )
        for index, layer in sorted(totals.layers.items())
        for latent, sums in sorted(layer.features.items())
    ]
    return FeatureTable(
        rows=tuple(sorted(rows, key=_clearest_first)),
        tested=len(real),
        found=sum(adjusted <= q for _, adjusted in real.values()),
        found_in_control=sum(adjusted <= q for _, adjusted in control.values()),
        q=q,
    )


class _Ranks:
    """The sampled completions of one layer, ranked by reward."""

    def __init__(self, reservoir: Reservoir, layer: int) -> None:
        here = [one for one in reservoir.ordered() if layer in one.layers]
        self._rewards = RankedRewards([one.reward for one in here])
        self._positions: dict[int, array[int]] = {}
        self._values: dict[int, array[float]] = {}
        for position, one in enumerate(here):
            activations = one.layers[layer]
            for latent, value in zip(activations.latents, activations.values, strict=True):
                self._positions.setdefault(latent, array("i")).append(position)
                self._values.setdefault(latent, array("d")).append(value)

    def of(self, latent: int, level: float) -> RankCorrelation | None:
        positions, values = self._positions.get(latent, ()), self._values.get(latent, ())
        return self._rewards.against(list(zip(positions, values, strict=True)), level=level)


def _p_values(
    layers: Mapping[int, LayerSums], test: Test, least: int
) -> dict[tuple[int, int], tuple[float, float]]:
    """Return the p-value and the adjusted one of each latent that is tested."""
    tested = dict(_tested(layers, test, least))
    adjusted = adjust(list(tested.values()))
    return {k: (p, q) for (k, p), q in zip(tested.items(), adjusted, strict=True)}


def _tested(
    layers: Mapping[int, LayerSums], test: Test, least: int
) -> Iterator[tuple[tuple[int, int], float]]:
    judge = contrast if test == "contrast" else length_controlled
    for index, layer in sorted(layers.items()):
        for latent, sums in sorted(layer.features.items()):
            if sums.completions >= least and (found := judge(layer, sums)):
                yield (index, latent), found.p_value


def _control(totals: Totals, layer: int, latent: int, level: float) -> Contrast | None:
    sums = totals.control[layer].features.get(latent, FeatureSums())
    return contrast(totals.control[layer], sums, level=level)


def _clearest_first(row: FeatureRow) -> tuple[float, float, int, int]:
    effect = abs(row.contrast.effect_size or 0.0) if row.contrast else 0.0
    return (2.0 if row.p_value is None else row.p_value, -effect, row.layer, row.latent)
