"""Which reader is picked next: a function of seed, logical shard and the number of the draw.

Nothing is carried from one draw to the next, so a schedule is resumed by its number alone, and a
shard draws the same whichever rank or worker it lives on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["Choice", "Schedule", "splitmix64"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, odd: its multiples visit every 64-bit number once."""


def splitmix64(state: int) -> int:
    """Return the number that SplitMix64 gives for a state, its increment already added.

    Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014, with the
    constants of Stafford's variant 13. Draw n of a generator seeded with s is
    `splitmix64(s + n * golden)`, n from 1: any draw can be had without those before it.
    """
    z = state & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Schedule:
    """The uniform random numbers of one logical shard.

    Args:
        seed: of the whole mix.
        shard: the logical shard; each has a sequence of its own.
    """

    __slots__ = ("_start",)

    def __init__(self, seed: int, shard: int) -> None:
        self._start = splitmix64(splitmix64(seed + _GOLDEN) ^ splitmix64(~shard))

    def uniform(self, draw: int) -> float:
        """Return the number of a draw, counted from 0, uniform in [0, 1) on a grid of 2**-53."""
        z = (self._start + (draw + 1) * _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


class Choice:
    """A weighted choice among the readers that are left.

    Args:
        weights: of all readers, by index; positive.
        left: indices of the readers to choose from; at least one.
    """

    __slots__ = ("_edges", "_last", "_left", "_total")

    def __init__(self, weights: Sequence[float], left: Sequence[int]) -> None:
        self._left = tuple(left)
        self._edges = list(accumulate(weights[reader] for reader in self._left))
        self._total = self._edges[-1]
        self._last = len(self._left) - 1

    def at(self, uniform: float) -> int:
        """Return the reader whose interval holds a number of [0, 1); each is as long as its share.

        Rounding can put `uniform * total` onto the upper end, which belongs to the last reader.
        """
        return self._left[bisect_right(self._edges, uniform * self._total, 0, self._last)]
