"""What an SAE does to each row before it reads it, and undoes in the reconstruction.

The two kinds of SAELens that depend on the row itself and can therefore not be folded into the
weights. Formulas and constants are those of `SAE._setup_activation_normalization` in SAELens 6: the
deviation divides by n - 1, and what is added to it before the division is not multiplied back.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Normalisation = Literal["none", "constant_norm_rescale", "layer_norm"]

_EPSILON = 1e-5


class Rows(NamedTuple):
    """Rows as an SAE reads them, and what it takes to go back.

    Attributes:
        read: what the encoder gets. Shape (n, d_model), float32.
        factor: what a reconstruction is multiplied by; `None` for 1. Shape (n, 1).
        shift: what is added to it then; `None` for 0. Shape (n, 1).
    """

    read: Tensor
    factor: Tensor | None = None
    shift: Tensor | None = None

    def restored(self, reconstruction: Tensor) -> Tensor:
        """Return a reconstruction of what was read in the units of the rows."""
        if self.factor is not None:
            reconstruction = reconstruction * self.factor
        return reconstruction if self.shift is None else reconstruction + self.shift


def normalised(x: Tensor, kind: Normalisation) -> Rows:
    """Return rows as an SAE reads them.

    Args:
        x: residuals. Shape (n, d_model), float32.
        kind: `constant_norm_rescale` gives each row the norm sqrt(d_model); `layer_norm` takes its
            mean and divides by its standard deviation.
    """
    match kind:
        case "constant_norm_rescale":
            factor = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
            return Rows(x / factor, factor)
        case "layer_norm":
            shift = x.mean(dim=1, keepdim=True)
            centred = x - shift
            factor = centred.norm(dim=1, keepdim=True) / max(1, x.shape[1] - 1) ** 0.5
            return Rows(centred / (factor + _EPSILON), factor, shift)
    return Rows(x)
