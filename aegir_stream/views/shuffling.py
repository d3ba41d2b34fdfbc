"""Chance that every reader draws alike: from a seed and the ids of a completion alone."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["chance", "shuffle"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def chance(seed: int, step: int, completion: int) -> int:
    """Return a number from 0 to 2**64 - 1, uniform over completions.

    Does not depend on the order in which completions are seen. Each id goes through the finaliser
    of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
    """
    return _mix(_mix(_mix(seed) ^ step) ^ completion)


def shuffle(completions: Sequence[int], *, step: int, seed: int) -> list[int]:
    """Return the positions of completions in a random order: all orders are equally likely."""
    drawn = [chance(seed, step, completion) for completion in completions]
    return sorted(range(len(drawn)), key=drawn.__getitem__)


def _mix(number: int) -> int:
    z = (number + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
