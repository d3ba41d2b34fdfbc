"""Transcoders: dictionaries that read one place of a model and predict another.

Dunefsky et al. 2024 (arXiv:2406.11944), mostly from the input of an MLP to its output; with a
linear skip connection beside the latents, Paulo et al. 2025 (arXiv:2501.18823).
"""

from __future__ import annotations

import torch
from msgspec import Struct
from torch import Tensor

from aegir_stream.errors import OptionError, ShapeError


class Transcoding(Struct, frozen=True, kw_only=True):
    """What makes a transcoder of an SAE, given as its `transcoding`.

    Attributes:
        w_skip: what is added to its prediction, ``x @ w_skip.T``. Shape (d_out, d_model).
    """

    w_skip: Tensor | None = None

    def skip(self, shape: tuple[int, int]) -> Tensor | None:
        """Return the skip connection in float32.

        Raises:
            ShapeError: it has not the shape (d_out, d_model).
        """
        if self.w_skip is None:
            return None
        if tuple(self.w_skip.shape) != shape:
            raise ShapeError(
                f"Expected `w_skip` of shape {shape}, got {tuple(self.w_skip.shape)}",
                hint="It maps what the transcoder reads onto what it predicts: (d_out, d_model)",
            )
        return self.w_skip.detach().to(torch.float32).contiguous()


def check_target(target: Tensor | None, x: Tensor, *, d_out: int, is_transcoder: bool) -> Tensor:
    """Return what a reconstruction of x is compared with: x itself, or what a transcoder predicts.

    Raises:
        OptionError: a transcoder has no target.
        ShapeError: the target has not one row of d_out for each row of x.
    """
    if target is None:
        if is_transcoder:
            raise OptionError(
                f"Expected the `target` of a transcoder, got None beside x {tuple(x.shape)}",
                hint="Pass target=, the activations of the place that it predicts; its input says"
                " nothing about how good it is",
            )
        return x
    if tuple(target.shape) != (x.shape[0], d_out):
        raise ShapeError(
            f"Expected a target of shape {(x.shape[0], d_out)}, got {tuple(target.shape)}",
            hint="Give the row that is predicted for each row of x",
        )
    return target
