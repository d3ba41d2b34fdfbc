"""Does a latent go with the reward beyond what both have to do with the completion's length?"""

from __future__ import annotations

import math

import msgspec

from aegir_stream.views.contrast import t_over_groups
from aegir_stream.views.group_sums import ROUNDING, FeatureSums, LayerSums

__all__ = ["LengthControlled", "length_controlled"]


class LengthControlled(msgspec.Struct, frozen=True, kw_only=True):
    """A latent against the reward, with the completion's length held fixed.

    Attributes:
        correlation: partial correlation within groups.
        p_value: two-sided, that it is 0.
    """

    correlation: float
    p_value: float


def length_controlled(layer: LayerSums, sums: FeatureSums) -> LengthControlled | None:
    """Return the partial correlation of a latent with the reward, given the length.

    Activation x and reward y are centred on their group's mean, and what a line through the length
    z explains is taken out of both: ``u = x - (xz / zz) z``, ``v = y - (yz / zz) z``, the slopes
    over all groups (Frisch & Waugh, Econometrica 1, 1933, 387-401). The correlation is ``sum(u v) /
    sqrt(sum(u u) sum(v v))``, which is ``(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2))``. The
    p-value is that of t with G - 2 degrees of freedom of the sum of ``u v`` over its deviation
    between groups (Liang & Zeger 1986), which assumes nothing of how x is spread: most latents are
    0 in most completions. Not below `sign_flip_floor`. Exact over all settled groups.

    Returns:
        `None` under three groups, or where the length explains all of the latent or of the reward.
    """
    groups = layer.groups
    if groups < 3:  # noqa: PLR2004 - a slope and a mean are estimated
        return None
    of_x = sums.q / layer.e if layer.e else 0.0
    of_y = layer.b / layer.e if layer.e else 0.0
    both = sums.p - of_x * layer.b
    xx = sums.xx - of_x * sums.q
    yy = layer.yy - of_y * layer.b
    if xx <= ROUNDING * sums.xx or yy <= ROUNDING * layer.yy:
        return None
    squares = max(0.0, _scores_squared(layer, sums, of_x, of_y) - both * both / groups)
    return LengthControlled(
        correlation=max(-1.0, min(1.0, both / math.sqrt(xx * yy))),
        p_value=t_over_groups(
            both,
            math.sqrt(squares * groups / (groups - 1)),
            df=groups - 2,
            active=sums.groups,
        ),
    )


def _scores_squared(layer: LayerSums, sums: FeatureSums, of_x: float, of_y: float) -> float:
    """Return the sum over groups of the square of ``sum(u v)``.

    That is ``(p - of_y q) - of_x (b - of_y e)`` of one group; the slopes are known at the end
    only, so the square is multiplied out.
    """
    latent = sums.pp - 2 * of_y * sums.pq + of_y**2 * sums.qq
    mixed = sums.pb - of_y * sums.pe - of_y * sums.qb + of_y**2 * sums.qe
    length = layer.bb - 2 * of_y * layer.be + of_y**2 * layer.ee
    return latent - 2 * of_x * mixed + of_x**2 * length
