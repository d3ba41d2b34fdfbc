"""Tail probabilities of the normal and of Student's t distribution, without scipy."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

__all__ = ["normal_quantile", "normal_two_sided", "t_quantile", "t_two_sided"]

_EPSILON = 1e-16
_TINY = 1e-300
_MOST_TERMS = 10_000


def normal_two_sided(z: float) -> float:
    """Return P(|Z| >= |z|) of a standard normal Z, which is ``erfc(|z| / sqrt 2)``."""
    return math.erfc(abs(z) / math.sqrt(2))


def normal_quantile(level: float) -> float:
    """Return the z of which a standard normal lies within -z and z with probability `level`."""
    return NormalDist().inv_cdf((1 + level) / 2)


def t_two_sided(t: float, df: float) -> float:
    """Return P(|T| >= |t|) of Student's t with `df` degrees of freedom.

    ``I_x(df / 2, 1 / 2)`` at ``x = df / (df + t^2)`` (Abramowitz & Stegun 26.7.1 and 26.5.27); I is
    the regularised incomplete beta function. 0 for an infinite t.
    """
    if math.isinf(t):
        return 0.0
    square = t * t
    if square < 1:
        # 1 - x, without the cancellation.
        return 1 - _beta(0.5, df / 2, square / (df + square))
    return _beta(df / 2, 0.5, df / (df + square))


@lru_cache(maxsize=256)
def t_quantile(level: float, df: float) -> float:
    """Return the t of which Student's t lies within -t and t with probability `level`."""
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > 1 - level:
        low, high = high, 2 * high
    middle = (low + high) / 2
    while low < middle < high:
        if t_two_sided(middle, df) > 1 - level:
            low = middle
        else:
            high = middle
        middle = (low + high) / 2
    return middle


def _beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function ``I_x(a, b)``.

    The continued fraction DLMF 8.17.22 converges fast below its mean; above it stands
    ``1 - I_(1-x)(b, a)`` (DLMF 8.17.4).
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log1p(-x))
    return min(1.0, front / (a * _fraction(a, b, x)))


def _fraction(a: float, b: float, x: float) -> float:
    """Return ``1 + d1/(1 + d2/(1 + ...))`` of DLMF 8.17.22.

    By the modified algorithm of Lentz (Thompson & Barnett, J. Comput. Phys. 64, 1986, 490-509).
    """
    value, c, d = 1.0, 1.0, 0.0
    for n in range(1, _MOST_TERMS):
        term = _coefficient(n, a, b, x)
        d = 1 / (1 + term * d or _TINY)
        c = 1 + term / c or _TINY
        value *= c * d
        if abs(c * d - 1) < _EPSILON:
            break
    return value


def _coefficient(n: int, a: float, b: float, x: float) -> float:
    m = n // 2
    if n % 2:
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
