"""Which latents go with the reward? Everything that is needed to say, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from aegir_stream.events import Completion, PassName, SAELogRecord
from aegir_stream.views.group_sums import LayerSums, add_group, copy_of, design_of
from aegir_stream.views.joining import Joined, Joiner, Joining, LayerActivity, Summary
from aegir_stream.views.reservoir import Activations, Reservoir, Sampled
from aegir_stream.views.rewarding import TOTAL
from aegir_stream.views.shuffling import shuffle

__all__ = [
    "FeatureReward",
    "FeatureRewardView",
    "Member",
    "Totals",
    "count_groups",
    "layers_of",
]


class Totals(msgspec.Struct):
    """What the settled steps add up to.

    Attributes:
        layers: sums over groups, by layer.
        control: the same sums with the activations of each group dealt out at random among its
            completions.
        reservoir: a sample of completions.
        completions: completions that counted at any layer.
        uncaptured: completions that were left out because nothing of them was recorded.
        without_reward: completions that were left out because their reward is unknown, not finite,
            or counted already (a later iteration).
        without_line: completions of which there are records but no line.
    """

    layers: dict[int, LayerSums]
    control: dict[int, LayerSums]
    reservoir: Reservoir
    completions: int = 0
    uncaptured: int = 0
    without_reward: int = 0
    without_line: int = 0

    def copy(self) -> Totals:
        """Return totals that can be added to while these stay as they are."""
        return msgspec.structs.replace(
            self,
            layers=copy_of(self.layers),
            control=copy_of(self.control),
            reservoir=self.reservoir.copy(),
        )


class Member(NamedTuple):
    """One completion of a group, which counts."""

    completion: int
    reward: float
    length: float
    layers: dict[int, LayerActivity]


class FeatureReward(msgspec.Struct):
    """Latents against rewards so far.

    Attributes:
        joining: the steps of which more may come.
        settled: what the others add up to.
    """

    joining: Joining
    settled: Totals


class FeatureRewardView:
    """Folds SAE records and completions into a `FeatureReward`.

    One pass. Memory goes with the latents that were ever active, the reservoir, and the steps that
    are not settled (see `joining`); not with the length of the run. The state does not depend on
    how the streams and lanes are interleaved, to the last bit, unless they are more than
    `open_steps` apart.

    Means and shares are over the tokens that were recorded, so thinning tokens at random leaves
    them right on average; `presence` and every maximum grow with the share that was kept. A
    completion of which nothing was recorded at a layer is left out there, not taken for 0.

    Args:
        reward: `R` (the weighted sum), `advantage`, or the name of a reward function; completions
            for which it is `None` or not finite are left out.
        summary: what one completion says of one latent: its `mean` activation over the recorded
            tokens, the `share` of them on which it is active, or its `presence` on any.
        pass_: the forward pass whose records count; `eval` joins the completions of evaluations.
        seed: of the control and of the reservoir.
        reservoir: completions that are sampled for the rank correlation.
        lag: steps to wait for ranks of which nothing was heard yet.
        open_steps: steps with records that are kept open at most.
    """

    streams = ("completions", "sae_features")

    def __init__(
        self,
        *,
        reward: str = TOTAL,
        summary: Summary = "mean",
        pass_: PassName = "loss",
        seed: int = 0,
        reservoir: int = 2048,
        lag: int = 2,
        open_steps: int = 64,
    ) -> None:
        self._joiner = Joiner(reward=reward, pass_=pass_, lag=lag, open_steps=open_steps)
        self._summary: Summary = summary
        self._seed = seed
        self._reservoir = reservoir

    def initial(self) -> FeatureReward:
        """Return a state that knows nothing."""
        reservoir = Reservoir(size=self._reservoir, seed=self._seed)
        return FeatureReward(Joining(), Totals(layers={}, control={}, reservoir=reservoir))

    def fold(
        self, state: FeatureReward, events: Iterable[SAELogRecord | Completion]
    ) -> FeatureReward:
        """Join events; add up what is settled."""
        for event in events:
            if self._joiner.add(state.joining, event):
                self._settle(state)
        self._settle(state)
        return state

    def totals(self, state: FeatureReward) -> Totals:
        """Return what everything so far adds up to, the steps that are not settled included."""
        totals = state.settled.copy()
        for step, completions in state.joining.open():
            self._add_step(totals, step, completions)
        return totals

    def _settle(self, state: FeatureReward) -> None:
        for step, completions in self._joiner.settle(state.joining):
            self._add_step(state.settled, step, completions)

    def _add_step(
        self, totals: Totals, step: int, completions: Sequence[tuple[int, Joined]]
    ) -> None:
        for members in count_groups(totals, completions):
            for layer in layers_of(members):
                self._add_group(totals, step, layer, members)
            for member in members:
                make = partial(self._sampled, step, member)
                totals.reservoir.offer(step, member.completion, make)

    def _add_group(self, totals: Totals, step: int, layer: int, members: Sequence[Member]) -> None:
        here = [member for member in members if layer in member.layers]
        design = design_of([m.reward for m in here], [m.length for m in here])
        activations = [member.layers[layer].summary(self._summary) for member in here]
        dealt = shuffle([member.completion for member in here], step=step, seed=self._seed)
        add_group(_sums(totals.layers, layer), design, activations)
        add_group(_sums(totals.control, layer), design, [activations[at] for at in dealt])

    def _sampled(self, step: int, member: Member) -> Sampled:
        layers = {
            index: Activations.of(activity.summary(self._summary))
            for index, activity in member.layers.items()
        }
        return Sampled(step, member.completion, member.reward, layers)


def count_groups(
    totals: Totals, completions: Sequence[tuple[int, Joined]]
) -> Iterator[list[Member]]:
    """Yield the completions of a step that count, a group at a time; count all of them."""
    groups: dict[int, list[Member]] = {}
    for number, joined in completions:
        outcome = joined.outcome
        if outcome is None:
            totals.without_line += 1
        elif outcome.reward is None:
            totals.without_reward += 1
        elif not joined.layers:
            totals.uncaptured += 1
        else:
            totals.completions += 1
            member = Member(number, outcome.reward, float(outcome.length), joined.layers)
            groups.setdefault(outcome.group, []).append(member)
    for _, members in sorted(groups.items()):
        yield members


def layers_of(members: Sequence[Member]) -> list[int]:
    """Return the layers at which any of the completions was recorded, ascending."""
    return sorted({layer for member in members for layer in member.layers})


def _sums(layers: dict[int, LayerSums], layer: int) -> LayerSums:
    found = layers.get(layer)
    if found is None:
        found = layers[layer] = LayerSums()
    return found
