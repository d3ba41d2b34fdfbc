"""The seven `stream_mixing/` scalars, from counts that were summed over all ranks.

Ratios of sums, never means of ratios: two ranks that are each stuck on a reader of their own have
an entropy of 0 each, and together mix perfectly well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import fsum, isfinite, log
from typing import NamedTuple, Self

from msgspec import Struct

__all__ = [
    "SCALARS",
    "MixTotals",
    "RawKeys",
    "Targets",
    "mix_scalars",
    "raw_keys",
    "totals_from_raw",
]

PREFIX = "stream_mixing/"
SCALARS = tuple(
    PREFIX + name
    for name in (
        "mix_tv",
        "modality_max_dev",
        "pick_entropy",
        "switch_rate",
        "staleness_max_steps",
        "reader_restarts",
        "live_readers_min",
    )
)
"""The names of the seven, in the order in which they are explained."""

PICKS = PREFIX + "picks/"
STAYS = PREFIX + "stays"
SWITCHES = PREFIX + "switches"
RESTARTS = PREFIX + "reader_restarts"
READ_SECONDS = PREFIX + "read_seconds"
WINDOWS = PREFIX + "windows"
STALENESS = PREFIX + "staleness_max_steps"
STEPS = PREFIX + "steps"
LIVE = PREFIX + "live_readers_min"


class Targets(Struct, frozen=True, kw_only=True):
    """What the mix should be.

    Attributes:
        weights: share of the picks by reader; they sum to 1.
        modalities: modality by reader.
    """

    weights: dict[str, float]
    modalities: dict[str, str]

    @classmethod
    def of(cls, weights: Mapping[str, float], modalities: Mapping[str, str]) -> Self:
        """Return targets from weights of any sum, and the modality of each reader."""
        total = fsum(weights.values())
        shares = {name: weight / total for name, weight in weights.items()}
        return cls(weights=shares, modalities={name: modalities[name] for name in weights})


class MixTotals(Struct, frozen=True, kw_only=True):
    """What happened in a window, over all ranks.

    Attributes:
        picks: picks by reader (sum).
        stays: picks of the same reader as the pick before in that logical shard (sum).
        switches: picks of another reader than the pick before in that logical shard (sum).
        restarts: passes begun anew (sum).
        staleness: steps since the reader that has waited longest was picked (maximum).
        live_readers: readers that the poorest logical shard has left (minimum); infinite where no
            rank has a mixer.
        ranks: ranks that took part with a mixer of their own (sum of one each).
        steps: steps in the window (maximum).
        read_seconds: time spent in the readers, where it is measured (sum).
    """

    picks: dict[str, float]
    stays: float
    switches: float
    restarts: float
    staleness: float
    live_readers: float
    ranks: float = 1.0
    steps: float = 1.0
    read_seconds: float = 0.0


class RawKeys(NamedTuple):
    """The keys of a raw window, by what reduces them over the ranks.

    Attributes:
        sums: added.
        maxima: the largest counts.
        minima: the smallest counts.
        all: all of them, in this order, which is that of a raw window.
    """

    sums: tuple[str, ...]
    maxima: tuple[str, ...]
    minima: tuple[str, ...]
    all: tuple[str, ...]


def raw_keys(targets: Targets) -> RawKeys:
    """Return the keys of every raw window of a mixer with these targets."""
    return _raw_keys(tuple(targets.weights))


@lru_cache(maxsize=16)
def _raw_keys(names: tuple[str, ...]) -> RawKeys:
    sums = (*(PICKS + name for name in names), STAYS, SWITCHES, RESTARTS, READ_SECONDS, WINDOWS)
    return RawKeys(sums, (STALENESS, STEPS), (LIVE,), (*sums, STALENESS, STEPS, LIVE))


def totals_from_raw(reduced: Mapping[str, float], targets: Targets) -> MixTotals:
    """Return a window's totals from its raw values, each reduced over the ranks as it has to be."""
    return MixTotals(
        picks={name: reduced[PICKS + name] for name in targets.weights},
        stays=reduced[STAYS],
        switches=reduced[SWITCHES],
        restarts=reduced[RESTARTS],
        staleness=reduced[STALENESS],
        live_readers=reduced[LIVE],
        ranks=reduced[WINDOWS],
        steps=reduced[STEPS],
        read_seconds=reduced[READ_SECONDS],
    )


def mix_scalars(totals: MixTotals, targets: Targets) -> dict[str, float | None]:
    """Return the seven scalars; `None` where a ratio has nothing to divide.

    With n_r picks of reader r, N = sum n_r, p_r = n_r / N, target shares w_r and K readers
    (all formulas are this project's; the first is the total variation distance, the third
    Shannon's entropy, 1948, over that of K equal shares):

    - `mix_tv` = 1/2 sum_r abs(p_r - w_r), in 0..1
    - `modality_max_dev` = max_m abs(sum_{r in m} (p_r - w_r)), in 0..1
    - `pick_entropy` = -sum_r p_r ln p_r / ln K, in 0..1; 1 for K = 1
    - `switch_rate` = switches / (switches + stays), in 0..1: consecutive picks of one logical shard
    - `staleness_max_steps`, `reader_restarts`, `live_readers_min`: as reduced

    The first four are `None` in a window without picks (for the fourth: without pairs).
    """
    n = sum(totals.picks.values())  # whole numbers: exact
    pairs = totals.switches + totals.stays
    values = (
        *(_of_shares(totals.picks, n, targets) if n else (None, None, None)),
        totals.switches / pairs if pairs else None,
        totals.staleness,
        totals.restarts,
        totals.live_readers if isfinite(totals.live_readers) else None,
    )
    return dict(zip(SCALARS, values, strict=True))


def _of_shares(
    picks: Mapping[str, float], n: float, targets: Targets
) -> tuple[float, float, float]:
    """Return the first three scalars, in one pass over the readers."""
    distance, nats = 0.0, 0.0
    by_modality: dict[str, float] = {}
    for name, weight in targets.weights.items():
        share = picks[name] / n
        distance += abs(share - weight)
        modality = targets.modalities[name]
        by_modality[modality] = by_modality.get(modality, 0.0) + share - weight
        if share:
            nats -= share * log(share)
    readers = len(targets.weights)
    entropy = min(1.0, nats / log(readers)) if readers > 1 else 1.0
    return distance / 2, max(map(abs, by_modality.values())), entropy
