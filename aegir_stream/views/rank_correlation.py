"""Spearman's rank correlation, with ties and an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from aegir_stream.views.distributions import normal_quantile, t_two_sided

__all__ = ["RankCorrelation", "RankedRewards", "midranks", "spearman"]

_FEWEST = 4
"""The interval divides by n - 3."""


class RankCorrelation(msgspec.Struct, frozen=True, kw_only=True):
    """Spearman's rho between two quantities.

    Attributes:
        rho: Pearson's correlation of the ranks, ties getting their mean rank.
        low: lower end of its interval.
        high: upper end.
        p_value: two-sided, that there is none: of t = rho sqrt((n - 2) / (1 - rho^2)) with n - 2
            degrees of freedom.
        n: pairs.
    """

    rho: float
    low: float
    high: float
    p_value: float
    n: int


class RankedRewards:
    """Rewards of completions, ranked once to be correlated with many latents.

    Args:
        rewards: of each completion, finite.
    """

    def __init__(self, rewards: Sequence[float]) -> None:
        middle = (len(rewards) + 1) / 2
        self._ranks = [rank - middle for rank in midranks(rewards)]
        self._square = sum(rank * rank for rank in self._ranks)

    def against(
        self, active: Sequence[tuple[int, float]], *, level: float = 0.95
    ) -> RankCorrelation | None:
        """Return the correlation with a latent; `None` under four pairs or without variance.

        Only where the latent is not 0 is anything to be done: the others share one rank.

        Args:
            active: (position of the completion, activation) where that is not 0.
            level: confidence of the interval.
        """
        n = len(self._ranks)
        zeros = n - len(active)
        below = sum(1 for _, x in active if x < 0)
        middle = (n + 1) / 2
        of_zero = below + (zeros + 1) / 2 - middle
        square, both = zeros * of_zero * of_zero, 0.0
        for rank, (position, x) in zip(midranks(x for _, x in active), active, strict=True):
            centred = rank + (zeros if x > 0 else 0) - middle
            square += centred * centred
            both += (centred - (of_zero if zeros else 0.0)) * self._ranks[position]
        if n < _FEWEST or not square or not self._square:
            return None
        return _judge(both / math.sqrt(square * self._square), n, level)


def spearman(
    left: Sequence[float], right: Sequence[float], *, level: float = 0.95
) -> RankCorrelation | None:
    """Return the rank correlation of two series; `None` under four pairs or without variance.

    The interval is that of Fisher's z, ``tanh(atanh(rho) -+ z sqrt((1 + rho^2 / 2) / (n - 3)))``
    (Bonett & Wright, Psychometrika 65, 2000, 23-28).
    """
    active = [(position, x) for position, x in enumerate(left) if x]
    return RankedRewards(right).against(active, level=level)


def midranks(values: Iterable[float]) -> list[float]:
    """Return the rank of each value from 1, equal ones getting the mean of their ranks."""
    listed = list(values)
    ascending = sorted(range(len(listed)), key=listed.__getitem__)
    ranks = [0.0] * len(listed)
    first = 0
    while first < len(ascending):
        behind = first
        while behind < len(ascending) and listed[ascending[behind]] == listed[ascending[first]]:
            behind += 1
        for index in ascending[first:behind]:
            ranks[index] = (first + behind + 1) / 2
        first = behind
    return ranks


def _judge(rho: float, n: int, level: float) -> RankCorrelation:
    rho = max(-1.0, min(1.0, rho))
    if abs(rho) == 1:
        return RankCorrelation(rho=rho, low=rho, high=rho, p_value=0.0, n=n)
    reach = normal_quantile(level) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    centre = math.atanh(rho)
    t = rho * math.sqrt((n - 2) / (1 - rho * rho))
    return RankCorrelation(
        rho=rho,
        low=math.tanh(centre - reach),
        high=math.tanh(centre + reach),
        p_value=t_two_sided(t, n - 2),
        n=n,
    )
