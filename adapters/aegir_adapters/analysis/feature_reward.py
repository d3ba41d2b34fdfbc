"""`FeatureRewardView` with arrays in the place of dictionaries: the same totals, faster."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np

from aegir_adapters.analysis.group_sums import LayerArrays
from aegir_adapters.analysis.pairs import Floats, Integers, pairs_of
from aegir_stream.events import Completion, PassName, SAELogRecord
from aegir_stream.views.feature_reward import Member, Totals, count_groups, layers_of
from aegir_stream.views.group_sums import design_of
from aegir_stream.views.joining import Joined, Joiner, Joining, Summary
from aegir_stream.views.reservoir import Activations, Reservoir, Sampled
from aegir_stream.views.rewarding import TOTAL
from aegir_stream.views.shuffling import shuffle

__all__ = ["ArrayFeatureReward", "ArrayFeatureRewardView"]


class _Fired(NamedTuple):
    """Activations of one step; each is (n,)."""

    completions: Integers
    layers: Integers
    latents: Integers
    activations: Floats


class _Said(NamedTuple):
    """What one completion says at one layer of the latents that are not 0 in it; each is (n,)."""

    latents: Integers
    values: Floats


class _Sums:
    """What `Totals` is, with the sums over groups in arrays."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals
        self.layers: dict[int, LayerArrays] = {}
        self.control: dict[int, LayerArrays] = {}

    def copy(self) -> _Sums:
        copied = _Sums(self.totals.copy())
        copied.layers = {index: layer.copy() for index, layer in self.layers.items()}
        copied.control = {index: layer.copy() for index, layer in self.control.items()}
        return copied

    def pure(self) -> Totals:
        return msgspec.structs.replace(
            self.totals,
            layers={index: layer.pure() for index, layer in self.layers.items()},
            control={index: layer.pure() for index, layer in self.control.items()},
        )


class ArrayFeatureReward:
    """Latents against rewards so far.

    Attributes:
        joining: the steps of which more may come; their tokens are counted here, their activations
            are in `fired`.
        fired: activations of those steps, as they came.
        settled: what the other steps add up to.
    """

    def __init__(self, reservoir: Reservoir) -> None:
        self.joining = Joining()
        self.fired: dict[int, list[_Fired]] = {}
        self.settled = _Sums(Totals(layers={}, control={}, reservoir=reservoir))


class ArrayFeatureRewardView:
    """Folds SAE records and completions into an `ArrayFeatureReward`.

    Options, meaning and bounds are those of `aegir_stream.views.FeatureRewardView`; `totals` gives
    the same `Totals`, up to the rounding of sums that are added in another order.
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

    def initial(self) -> ArrayFeatureReward:
        """Return a state that knows nothing."""
        return ArrayFeatureReward(Reservoir(size=self._reservoir, seed=self._seed))

    def fold(
        self, state: ArrayFeatureReward, events: Iterable[SAELogRecord | Completion]
    ) -> ArrayFeatureReward:
        """Join events; add up what is settled."""
        records: list[SAELogRecord] = []
        for event in events:
            if isinstance(event, Completion):
                self._joiner.add(state.joining, event)
            elif self._joiner.wants(event):
                records.append(event)
        if records:
            self._add(state, records)
        for step, completions in self._joiner.settle(state.joining):
            self._add_step(state.settled, step, completions, state.fired.pop(step, ()))
        return state

    def totals(self, state: ArrayFeatureReward) -> Totals:
        """Return what everything so far adds up to, the steps that are not settled included."""
        sums = state.settled.copy()
        for step, completions in state.joining.open():
            self._add_step(sums, step, completions, state.fired.get(step, ()))
        return sums.pure()

    def _add(self, state: ArrayFeatureReward, records: Sequence[SAELogRecord]) -> None:
        """Count tokens, and keep activations until their step is settled."""
        places = np.array([(r.step, r.completion, r.layer_index) for r in records], np.int64)
        unique, tokens = np.unique(places, axis=0, return_counts=True)
        for (step, completion, layer), count in zip(unique.tolist(), tokens.tolist(), strict=True):
            self._joiner.add_tokens(
                state.joining, step=step, completion=completion, layer=layer, tokens=count
            )
        fresh = np.flatnonzero(places[:, 0] > state.joining.settled)
        pairs = pairs_of([records[index] for index in fresh.tolist()])
        state.joining.non_finite += pairs.non_finite
        steps, completions, layers = places[fresh][pairs.records].T
        for step in np.unique(steps).tolist():
            at = steps == step
            state.fired.setdefault(step, []).append(
                _Fired(completions[at], layers[at], pairs.latents[at], pairs.activations[at])
            )

    def _add_step(
        self,
        sums: _Sums,
        step: int,
        completions: Sequence[tuple[int, Joined]],
        fired: Sequence[_Fired],
    ) -> None:
        active = _sorted_by_place(fired)
        for members in count_groups(sums.totals, completions):
            for layer in layers_of(members):
                self._add_group(
                    sums, step, layer, [m for m in members if layer in m.layers], active
                )
            for member in members:
                make = partial(self._sampled, step, member, active)
                sums.totals.reservoir.offer(step, member.completion, make)

    def _add_group(
        self, sums: _Sums, step: int, layer: int, members: Sequence[Member], active: _Active
    ) -> None:
        design = design_of([m.reward for m in members], [m.length for m in members])
        said = [self._summary_of(member, layer, active) for member in members]
        latents, columns = np.unique(
            np.concatenate([one.latents for one in said]), return_inverse=True
        )
        rows = np.repeat(np.arange(len(said)), [len(one.latents) for one in said])
        dense = np.zeros((len(said), len(latents)))
        dense[rows, columns] = np.concatenate([one.values for one in said])
        dealt = shuffle([member.completion for member in members], step=step, seed=self._seed)
        sums.layers.setdefault(layer, LayerArrays()).add(design, latents, dense)
        sums.control.setdefault(layer, LayerArrays()).add(design, latents, dense[dealt])

    def _summary_of(self, member: Member, layer: int, active: _Active) -> _Said:
        latents, counts, totals = active.of(member.completion, layer)
        tokens = member.layers[layer].tokens
        if self._summary == "presence":
            return _Said(latents, np.ones(len(latents)))
        return _Said(latents, (counts if self._summary == "share" else totals) / tokens)

    def _sampled(self, step: int, member: Member, active: _Active) -> Sampled:
        layers: dict[int, Activations] = {}
        for layer in member.layers:
            latents, values = self._summary_of(member, layer, active)
            layers[layer] = Activations(
                array("i", latents.astype(np.intc).tobytes()), array("d", values.tobytes())
            )
        return Sampled(step, member.completion, member.reward, layers)


class _Active:
    """What each completion of a step activated at each layer.

    Args:
        places: (m, 2) completion and layer, each pair once, ascending.
        starts: (m + 1,) where its latents begin among the others' and where they end.
        latents: (n,) ascending within a place.
        counts: (n,) tokens on which each was active.
        totals: (n,) sum of its activations.
    """

    def __init__(
        self,
        places: Integers,
        starts: Integers,
        latents: Integers,
        counts: Integers,
        totals: Floats,
    ) -> None:
        self._ends = {
            (completion, layer): (first, behind)
            for (completion, layer), first, behind in zip(
                places.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True
            )
        }
        self._latents = latents
        self._counts = counts
        self._totals = totals

    def of(self, completion: int, layer: int) -> tuple[Integers, Integers, Floats]:
        """Return latents, counts and totals of a completion at a layer."""
        first, behind = self._ends.get((completion, layer), (0, 0))
        return (
            self._latents[first:behind],
            self._counts[first:behind],
            self._totals[first:behind],
        )


def _sorted_by_place(fired: Sequence[_Fired]) -> _Active:
    """Add up what came of the same latent in the same completion at the same layer."""
    columns = [np.concatenate(parts) for parts in zip(*fired, strict=True)] or [
        np.zeros(0, np.int64)
    ] * 4
    # Stable, so that sums are added in the order of the log.
    order = np.lexsort((columns[2], columns[1], columns[0]))
    completions, layers, latents, activations = (column[order] for column in columns)
    is_new = np.ones(len(order), bool)
    is_new[1:] = np.any([c[1:] != c[:-1] for c in (completions, layers, latents)], axis=0)
    first = np.flatnonzero(is_new)
    counts = np.diff(np.append(first, len(order)))
    totals = np.add.reduceat(activations, first) if len(first) else np.zeros(0)
    keys = np.column_stack([completions[first], layers[first]])
    places, starts = np.unique(keys, axis=0, return_index=True)
    return _Active(places, np.append(starts, len(first)), latents[first], counts, totals)
