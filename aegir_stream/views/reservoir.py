"""A sample of completions, all equally likely to be in it, of a size that is fixed beforehand."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping

import msgspec

from aegir_stream.views.shuffling import chance

__all__ = ["Activations", "Reservoir", "Sampled"]


class Activations(msgspec.Struct, frozen=True):
    """The latents of one completion at one layer that are not 0, twelve bytes each.

    Attributes:
        latents: their indices, ascending, as 32-bit integers.
        values: what the completion says of each.
    """

    latents: array[int]
    values: array[float]

    @classmethod
    def of(cls, latents: Mapping[int, float]) -> Activations:
        """Return what a mapping says."""
        ascending = sorted(latents)
        return cls(array("i", ascending), array("d", map(latents.__getitem__, ascending)))


class Sampled(msgspec.Struct, frozen=True):
    """One completion of the sample.

    Attributes:
        step: optimizer step.
        completion: id within the step.
        reward: what it earned.
        layers: by layer at which it was recorded, its latents.
    """

    step: int
    completion: int
    reward: float
    layers: dict[int, Activations]


class Reservoir(msgspec.Struct):
    """The completions to which chance gave the least numbers (bottom-k sampling).

    Which ones is settled by the seed and their ids, so neither the order in which they come nor
    the way they are read changes the sample (Cohen & Kaplan, Summarizing data using bottom-k
    sketches, PODC 2007). While there are no more than `size`, it holds them all.

    Attributes:
        size: completions it holds at most.
        seed: of the numbers.
        offered: completions from which the sample was drawn.
        largest: largest number in it, once it is full.
        sample: by number.
    """

    size: int
    seed: int
    offered: int = 0
    largest: int | None = None
    sample: dict[int, Sampled] = {}

    def offer(self, step: int, completion: int, make: Callable[[], Sampled]) -> None:
        """Take a completion into the sample if it belongs there; only then it is made."""
        self.offered += 1
        drawn = chance(self.seed, step, completion)
        if self.largest is not None and drawn >= self.largest:
            return
        self.sample[drawn] = make()
        if len(self.sample) > self.size:
            del self.sample[max(self.sample)]
        if len(self.sample) == self.size:
            self.largest = max(self.sample, default=-1)

    def copy(self) -> Reservoir:
        """Return one that can be added to while this one stays as it is."""
        return msgspec.structs.replace(self, sample=dict(self.sample))

    def ordered(self) -> list[Sampled]:
        """Return the sample in the order of steps and ids."""
        return sorted(self.sample.values(), key=lambda one: (one.step, one.completion))
