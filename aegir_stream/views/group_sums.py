"""What is kept of the groups that are settled: sums, from which the statistics are computed.

GRPO compares a completion with the others of its group, and so do these sums: whatever differs
between groups (the prompt, the step, how hard it is) cancels. They are exact: adding up group by
group loses nothing against keeping every completion.

A latent of which a completion has no record counts 0 in it: the log holds the K hardest latents of
each token, so a weaker activation is not told from none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

__all__ = ["ROUNDING", "Design", "FeatureSums", "LayerSums", "add_group", "copy_of", "design_of"]

_SAME = 1e-9
"""Rewards nearer to the group's mean than this share of its range are equal to it."""

ROUNDING = 1e-12
"""A difference of sums smaller than this share of them is nothing but rounding."""


class Design(msgspec.Struct, frozen=True):
    """The rewards and lengths of one group: all that does not depend on a latent.

    Attributes:
        rewards: centred on the group's mean.
        lengths: likewise.
        sides: 1 above the group's mean reward, -1 below, 0 for equal to it.
        above: completions above it.
        below: completions below it.
    """

    rewards: tuple[float, ...]
    lengths: tuple[float, ...]
    sides: tuple[int, ...]
    above: int
    below: int

    @property
    def weight(self) -> float:
        """Weight of the group's contrast, half the harmonic mean of the two counts."""
        return self.above * self.below / (self.above + self.below)


class FeatureSums(msgspec.Struct, gc=False):
    """One latent over the groups of a layer. x is its activation, y the reward, z the length.

    Of each group, d is the contrast (mean x above the mean reward, less that below), w its weight;
    p is the sum of centred x y, q that of x z, b of y z, e of z z.

    Attributes:
        completions: completions in which the latent was active.
        groups: groups in which it was active in any.
        wd: sum of w d.
        wwd: sum of w w d.
        wwdd: sum of w w d d.
        spread: squared deviations of x from its mean on its side, over both sides.
        xx: sum of centred x x.
        p: sum of p.
        q: sum of q.
        pp: sum of p p.
        pq: sum of p q.
        qq: sum of q q.
        pb: sum of p b.
        pe: sum of p e.
        qb: sum of q b.
        qe: sum of q e.
    """

    completions: int = 0
    groups: int = 0
    wd: float = 0.0
    wwd: float = 0.0
    wwdd: float = 0.0
    spread: float = 0.0
    xx: float = 0.0
    p: float = 0.0
    q: float = 0.0
    pp: float = 0.0
    pq: float = 0.0
    qq: float = 0.0
    pb: float = 0.0
    pe: float = 0.0
    qb: float = 0.0
    qe: float = 0.0


class LayerSums(msgspec.Struct):
    """All groups of one layer; names as in `FeatureSums`.

    Attributes:
        groups: groups in which rewards differ.
        equal_groups: groups in which all rewards are the same, or that are a single completion:
            there is nothing to compare in them, and nothing of them counts.
        completions: completions of the groups in which rewards differ.
        compared: those of them that are above or below their group's mean.
        w: sum of w.
        ww: sum of w w.
        yy: sum of centred y y.
        b: sum of b.
        e: sum of e.
        bb: sum of b b.
        be: sum of b e.
        ee: sum of e e.
        features: sums of each latent that was ever active.
    """

    groups: int = 0
    equal_groups: int = 0
    completions: int = 0
    compared: int = 0
    w: float = 0.0
    ww: float = 0.0
    yy: float = 0.0
    b: float = 0.0
    e: float = 0.0
    bb: float = 0.0
    be: float = 0.0
    ee: float = 0.0
    features: dict[int, FeatureSums] = {}


def design_of(rewards: Sequence[float], lengths: Sequence[float]) -> Design | None:
    """Return the design of a group; `None` if all its rewards are the same."""
    low, high = min(rewards), max(rewards)
    if low == high:
        return None
    centred = _centred(rewards)
    same = (high - low) * _SAME
    sides = tuple(0 if abs(y) <= same else 1 if y > 0 else -1 for y in centred)
    return Design(centred, _centred(lengths), sides, sides.count(1), sides.count(-1))


def add_group(
    layer: LayerSums, design: Design | None, activations: Sequence[Mapping[int, float]]
) -> None:
    """Add a group to the sums of a layer.

    Args:
        layer: the sums.
        design: its rewards and lengths.
        activations: of each completion, in the same order, the latents that are not 0.
    """
    if design is None:
        layer.equal_groups += 1
        return
    b = _dot(design.rewards, design.lengths)
    e = _dot(design.lengths, design.lengths)
    layer.groups += 1
    layer.completions += len(design.rewards)
    layer.compared += design.above + design.below
    layer.w += design.weight
    layer.ww += design.weight**2
    layer.yy += _dot(design.rewards, design.rewards)
    layer.b += b
    layer.e += e
    layer.bb += b * b
    layer.be += b * e
    layer.ee += e * e
    for latent, active in _by_latent(activations).items():
        sums = layer.features.get(latent)
        if sums is None:
            sums = layer.features[latent] = FeatureSums()
        _add_latent(sums, design, active, b, e)


def copy_of(layers: Mapping[int, LayerSums]) -> dict[int, LayerSums]:
    """Return sums that can be added to while the given ones stay as they are."""
    return {
        index: msgspec.structs.replace(
            layer, features={k: msgspec.structs.replace(f) for k, f in layer.features.items()}
        )
        for index, layer in layers.items()
    }


def _by_latent(
    activations: Sequence[Mapping[int, float]],
) -> dict[int, list[tuple[int, float]]]:
    """Turn latents by completion into (position of the completion, activation) by latent."""
    found: dict[int, list[tuple[int, float]]] = {}
    for position, latents in enumerate(activations):
        for latent, activation in latents.items():
            found.setdefault(latent, []).append((position, activation))
    return found


def _add_latent(
    sums: FeatureSums, design: Design, active: list[tuple[int, float]], b: float, e: float
) -> None:
    total = square = p = q = 0.0
    sides = [0.0, 0.0, 0.0]
    squares = [0.0, 0.0, 0.0]
    for position, x in active:
        total += x
        square += x * x
        p += x * design.rewards[position]
        q += x * design.lengths[position]
        sides[design.sides[position]] += x
        squares[design.sides[position]] += x * x
    above, below = sides[1] / design.above, sides[-1] / design.below
    difference = above - below
    contrast = design.weight * difference if abs(difference) > ROUNDING * abs(above) else 0.0
    xx = square - total * total / len(design.rewards)
    sums.completions += len(active)
    sums.groups += 1
    sums.wd += contrast
    sums.wwd += design.weight * contrast
    sums.wwdd += contrast * contrast
    sums.spread += squares[1] - sides[1] * above + squares[-1] - sides[-1] * below
    sums.xx += xx if xx > ROUNDING * square else 0.0
    sums.p += p
    sums.q += q
    sums.pp += p * p
    sums.pq += p * q
    sums.qq += q * q
    sums.pb += p * b
    sums.pe += p * e
    sums.qb += q * b
    sums.qe += q * e


def _centred(values: Sequence[float]) -> tuple[float, ...]:
    mean = sum(values) / len(values)
    return tuple(value - mean for value in values)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
