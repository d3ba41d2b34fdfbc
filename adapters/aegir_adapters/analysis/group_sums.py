"""The sums over groups of all latents of a layer, one row of an array for each kind of sum."""

from __future__ import annotations

import msgspec
import numpy as np

from aegir_adapters.analysis.pairs import Floats, Integers
from aegir_stream.views.group_sums import ROUNDING, Design, FeatureSums, LayerSums, add_group

__all__ = ["LayerArrays"]

_NAMES = tuple(field.name for field in msgspec.structs.fields(FeatureSums))
_COUNTS = 2
"""Sums that are whole numbers, and come first."""


class LayerArrays:
    """What `aegir_stream.views.group_sums.LayerSums` is, for many latents.

    Attributes:
        layer: sums that do not depend on a latent.
        sums: (16, latents) float64, rows in the order of the fields of `FeatureSums`.
    """

    def __init__(self) -> None:
        self.layer = LayerSums()
        self.sums: Floats = np.zeros((len(_NAMES), 0))

    def copy(self) -> LayerArrays:
        """Return sums that can be added to while these stay as they are."""
        copied = LayerArrays()
        copied.layer = msgspec.structs.replace(self.layer, features={})
        copied.sums = self.sums.copy()
        return copied

    def add(self, design: Design | None, latents: Integers, activations: Floats) -> None:
        """Add a group.

        Args:
            design: its rewards and lengths.
            latents: (m,) the latents that are active in any of its completions, each once.
            activations: (completions, m) of each, in the order of the design.
        """
        add_group(self.layer, design, ())
        if design is None or not len(latents):
            return
        most = int(latents.max()) + 1
        if most > self.sums.shape[1]:
            wider = np.zeros((len(_NAMES), max(most, 2 * self.sums.shape[1])))
            wider[:, : self.sums.shape[1]] = self.sums
            self.sums = wider
        self.sums[:, latents] += _of_group(design, activations)

    def pure(self) -> LayerSums:
        """Return the sums as the core has them."""
        active = np.flatnonzero(self.sums[1])
        columns = self.sums[:, active].T.tolist()
        features = {
            latent: FeatureSums(*map(int, column[:_COUNTS]), *column[_COUNTS:])
            for latent, column in zip(active.tolist(), columns, strict=True)
        }
        return msgspec.structs.replace(self.layer, features=features)


def _of_group(design: Design, x: Floats) -> Floats:
    """Return (16, m) what one group adds to the sums of its latents."""
    rewards, lengths = np.array(design.rewards), np.array(design.lengths)
    sides = np.array(design.sides)
    up, down = x[sides > 0], x[sides < 0]
    above, below = up.mean(axis=0), down.mean(axis=0)
    difference = above - below
    contrast = design.weight * np.where(
        np.abs(difference) > ROUNDING * np.abs(above), difference, 0
    )
    square = (x * x).sum(axis=0)
    xx = square - x.sum(axis=0) ** 2 / len(x)
    p, q = rewards @ x, lengths @ x
    b, e = float(rewards @ lengths), float(lengths @ lengths)
    return np.stack(
        [
            np.count_nonzero(x, axis=0),
            np.ones(x.shape[1]),
            contrast,
            design.weight * contrast,
            contrast * contrast,
            ((up - above) ** 2).sum(axis=0) + ((down - below) ** 2).sum(axis=0),
            np.where(xx > ROUNDING * square, xx, 0),
            p,
            q,
            p * p,
            p * q,
            q * q,
            p * b,
            p * e,
            q * b,
            q * e,
        ]
    )
