"""Is a latent more active in the completions that are rewarded more than others of their group?"""

from __future__ import annotations

import math

import msgspec

from aegir_stream.views.distributions import t_quantile, t_two_sided
from aegir_stream.views.group_sums import FeatureSums, LayerSums

__all__ = ["Contrast", "contrast", "sign_flip_floor", "t_over_groups"]


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """Rewarded against unrewarded completions of the same group.

    Attributes:
        difference: mean activation above the group's mean reward, less that below it; the mean over
            groups, weighted by w = n1 n0 / (n1 + n0).
        standard_error: of the difference, from how it varies between groups.
        low: lower end of its interval.
        high: upper end.
        effect_size: the difference in standard deviations of the activation, those within the two
            sides of the groups (Cohen's d); `None` where there is no such deviation.
        p_value: two-sided, that there is no difference.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    effect_size: float | None
    p_value: float


def contrast(layer: LayerSums, sums: FeatureSums, *, level: float = 0.95) -> Contrast | None:
    """Return the contrast of a latent; `None` under two groups.

    Every group gives one contrast d. With weights w that are those of a regression with one
    intercept per group (Angrist & Pischke, Mostly Harmless Econometrics, 2009, 3.3.1), the
    difference is ``D = sum(w d) / sum(w)``, and its standard error the one that holds under any
    spread within the groups: ``sqrt(G / (G - 1) * sum(w^2 (d - D)^2)) / sum(w)`` (Liang & Zeger,
    Biometrika 73, 1986, 13-22). The interval and the p-value are those of t with G - 1 degrees of
    freedom, the p-value not below `sign_flip_floor`. Exact over all settled groups, not a sample.
    """
    if layer.groups < 2:  # noqa: PLR2004 - one group does not vary
        return None
    difference = sums.wd / layer.w
    squares = sums.wwdd - 2 * difference * sums.wwd + difference**2 * layer.ww
    groups = layer.groups
    error = math.sqrt(max(0.0, squares) * groups / (groups - 1)) / layer.w
    reach = error * t_quantile(level, groups - 1)
    inside = layer.compared - 2 * groups
    deviation = math.sqrt(max(0.0, sums.spread) / inside) if inside > 0 else 0.0
    return Contrast(
        difference=difference,
        standard_error=error,
        low=difference - reach,
        high=difference + reach,
        effect_size=difference / deviation if deviation else None,
        p_value=t_over_groups(difference, error, df=groups - 1, active=sums.groups),
    )


def t_over_groups(estimate: float, error: float, *, df: int, active: int) -> float:
    """Return the two-sided p-value of an estimate over groups, not below `sign_flip_floor`."""
    if not estimate:
        return 1.0
    t = estimate / error if error else math.inf
    return max(t_two_sided(t, df), sign_flip_floor(active))


def sign_flip_floor(active: int) -> float:
    """Return the least p-value that flipping the signs of `active` groups can give, 2^(1 - n).

    A latent that is active in three groups cannot show more than those three can, however alike
    they are; t, which takes the groups for normal, knows no such bound. (The sign-flip test is
    Fisher's, The Design of Experiments, 1935, section 21.)
    """
    return min(1.0, 2.0 ** (1 - active))
