"""The range in which each scalar of a healthy mix stays, with a stated chance to leave it.

A healthy mix picks readers independently with probabilities w_r, which is what `StreamMixer` does
while all its readers last. With N picks in a window, K readers, M modalities, R ranks, P pairs of
consecutive picks, and a (`false_alarm`) the probability that one metric of one healthy window is
outside of its band, each bound below holds for every N, not only for large ones.
"""

from __future__ import annotations

from math import ceil, fsum, log, log1p, sqrt
from typing import NamedTuple

from aegir_adapters.mixing.formulas import SCALARS, MixTotals, Targets
from aegir_stream.errors import OptionError

__all__ = ["Band", "healthy_bands"]


class Band(NamedTuple):
    """A range; both ends belong to it, `None` is no bound.

    Attributes:
        low: smallest healthy value.
        high: largest healthy value.
    """

    low: float | None
    high: float | None

    def holds(self, value: float | None) -> bool:
        """Return whether a value is healthy; `None`, which tells nothing, is."""
        if value is None:
            return True
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
        )


def healthy_bands(
    totals: MixTotals,
    targets: Targets,
    *,
    false_alarm: float = 1e-6,
    restarts: float = 0.0,
    slack_steps: int = 1,
) -> dict[str, Band]:
    """Return the band of each of the seven scalars, for a window of the size of `totals`.

    Of `totals` only the amounts are used: picks and pairs, ranks and steps. By the default a run
    that logs 10,000 windows sees a false alarm of any metric with a probability of 5 % at most.

    Args:
        totals: the window, over all ranks.
        targets: the shares that the mix should have.
        false_alarm: probability that a metric of a healthy window is outside of its band; for
            `reader_restarts` and `live_readers_min`, where nothing is left to chance, it is 0.
        restarts: how often readers may begin anew in a window. By default not at all: a reader
            that does is too short for the run.
        slack_steps: added to the bound of staleness. A prefetching worker counts its picks for the
            step that is trained on meanwhile, which wavers by one.

    Raises:
        OptionError: `false_alarm` is no probability between 0 and 1.
    """
    if not 0 < false_alarm < 1:
        raise OptionError(
            f"Expected a probability between 0 and 1 as `false_alarm`, got {false_alarm!r}"
        )
    weights = list(targets.weights.values())
    n = fsum(totals.picks.values())
    pairs = totals.stays + totals.switches
    readers = float(len(weights))
    bands = (
        Band(0.0, _tv_high(weights, n, false_alarm)),
        Band(0.0, _modality_high(len(set(targets.modalities.values())), n, false_alarm)),
        _entropy_band(weights, n, false_alarm),
        _switch_band(weights, pairs, false_alarm),
        Band(0.0, _staleness_high(weights, totals, false_alarm, slack_steps)),
        Band(0.0, float(restarts)),
        Band(readers, readers),
    )
    return dict(zip(SCALARS, bands, strict=True))


def _tv_high(weights: list[float], n: float, a: float) -> float:
    """Return 1/2 sum_r sqrt(w_r (1 - w_r) / N) + sqrt(ln(1/a) / (2 N)), at most 1.

    The first term bounds the expectation: E|p_r - w_r| is at most the standard deviation of p_r
    (Jensen). One pick more or less moves the distance by 1/N at most, so it exceeds its expectation
    by t with probability exp(-2 N t^2) at most (McDiarmid, "On the method of bounded differences",
    1989).
    """
    if not n:
        return 1.0
    mean = fsum(sqrt(w * (1 - w) / n) for w in weights) / 2
    return min(1.0, mean + sqrt(log(1 / a) / (2 * n)))


def _modality_high(modalities: int, n: float, a: float) -> float:
    """Return sqrt(ln(2 M / a) / (2 N)), at most 1.

    The share of a modality is a mean of N indicators: Hoeffding ("Probability inequalities for sums
    of bounded random variables", 1963) on both sides, and the union of M modalities.
    """
    return min(1.0, sqrt(log(2 * modalities / a) / (2 * n))) if n else 1.0


def _entropy_band(weights: list[float], n: float, a: float) -> Band:
    """Return the band of the entropy p has, over ln K.

    H(p) = H(w) - D(p||w) + S exactly, with the relative entropy D >= 0 and the centred mean
    S = sum_r (p_r - w_r) ln(1/w_r) of N independent values. Three events share the probability a:
    S too low, S too high, D too high. Equal weights have S = 0, and a high end of 1.
    """
    readers = len(weights)
    if readers == 1:
        return Band(1.0, 1.0)
    if not n:
        return Band(0.0, 1.0)
    surprise = [-log(w) for w in weights]
    expected = fsum(w * s for w, s in zip(weights, surprise, strict=True))
    swing = _mean_deviation(weights, surprise, n, a / 3)
    low = expected - _divergence_high(readers, n, a / 3) - swing
    unit = log(readers)
    # The value itself is rounded too, and with equal weights the high end is reached.
    return Band(max(0.0, low / unit), min(1.0, (expected + swing) / unit + 1e-12))


def _mean_deviation(weights: list[float], values: list[float], n: float, a: float) -> float:
    """Return what the mean of N independent values stays within, on one side, with 1 - a.

    The smaller of Hoeffding's range sqrt(ln(1/a) / (2 N)) and Bernstein's
    sqrt(2 variance ln(1/a) / N) + range ln(1/a) / (3 N); both hold for every N.
    """
    mean = fsum(w * v for w, v in zip(weights, values, strict=True))
    variance = fsum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
    width, bits = max(values) - min(values), log(1 / a)
    hoeffding = width * sqrt(bits / (2 * n))
    return min(hoeffding, sqrt(2 * variance * bits / n) + width * bits / (3 * n))


def _divergence_high(readers: int, n: float, a: float) -> float:
    """Return the relative entropy D(p||w) that N picks exceed with probability a at most.

    P(D >= e) <= exp(-N e) (e_ N e / (K - 1))^(K - 1) for N e > K - 1, with e_ = 2.718... (Agrawal,
    "Finite-sample concentration of the multinomial in relative entropy", 2020: the moment
    generating function of N D at s is at most (1 - s)^-(K-1); Chernoff at s = 1 - (K-1) / (N e)).
    Solved for x = N e by bisection: ln of the right side falls in x.
    """
    free, bits = readers - 1, log(1 / a)
    low, high = float(free), 2.0 * free + 4 * bits
    for _ in range(60):
        x = (low + high) / 2
        if x - free * (1 + log(x / free)) < bits:
            low = x
        else:
            high = x
    return high / n


def _switch_band(weights: list[float], pairs: float, a: float) -> Band:
    """Return 1 - sum_r w_r^2 -+ sqrt(ln(2/a) / P), within 0..1.

    Two independent picks differ with that probability. Neighbouring pairs share a pick, so pairs
    are independent only within each of two halves, the even and the odd ones: Hoeffding's bound
    with twice the variance (Janson, "Large deviations for sums of partly dependent random
    variables", 2004, theorem 2.1 with chromatic number 2).
    """
    if not pairs:
        return Band(0.0, 1.0)
    mean = 1 - fsum(w * w for w in weights)
    swing = sqrt(log(2 / a) / pairs)
    return Band(max(0.0, mean - swing), min(1.0, mean + swing))


def _staleness_high(weights: list[float], totals: MixTotals, a: float, slack: int) -> float | None:
    """Return ceil(ln(R K / a) / (n ln(1 / (1 - w)))) - 1 + slack, w the smallest weight.

    A rank with n picks a step does not pick reader r in s + 1 steps, and so has a staleness above
    s, with probability (1 - w_r)^(n (s + 1)); K readers on R ranks, each no likelier than the
    smallest, together R K times that at most.
    """
    ranks, least = max(1.0, totals.ranks), min(weights)
    per_step = fsum(totals.picks.values()) / (ranks * max(1.0, totals.steps))
    if not per_step:
        return None
    if least == 1:
        return float(slack)
    steps = log(ranks * len(weights) / a) / (-log1p(-least) * per_step)
    return float(max(0, ceil(steps) - 1) + slack)
