"""The tensors of an SAE in one orientation, and where they came from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from msgspec import Struct
from torch import Tensor

from aegir_stream.errors import SAEFormatError, ShapeError

ORIENTATION = (
    "An SAE here is w_enc [d_model, n_latents], b_enc [n_latents], "
    "w_dec [n_latents, d_model], b_dec [d_model]"
)


class Origin(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an SAE came from, as far as that is known.

    Attributes:
        layer: decoder layer whose output residual stream it was trained on.
        hook_name: name of the place it reads, as its file has it.
        hook_name_out: name of the place that a transcoder predicts.
        model_name: model it was trained on.
        repository: repository that it was published in.
        revision: commit of that repository.
        path: where it was loaded from: on this disk, or inside the repository.
    """

    layer: int | None = None
    hook_name: str | None = None
    model_name: str | None = None
    repository: str | None = None
    revision: str | None = None
    path: str | None = None
    hook_name_out: str | None = None


class Weights(NamedTuple):
    """The four tensors that every SAE has.

    Attributes:
        w_enc: encoder. Shape (d_model, n_latents).
        b_enc: encoder bias. Shape (n_latents,).
        w_dec: decoder, one direction per latent. Shape (n_latents, d_model); a transcoder's may
            have another width.
        b_dec: decoder bias. Shape (d_model,), or that other width.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor

    def float32(self) -> Weights:
        """Return them detached, contiguous and in float32, copied only where they are not."""
        return Weights(*(tensor.detach().to(torch.float32).contiguous() for tensor in self))

    def check_shapes(self, *, transcodes: bool = False) -> None:
        """Make sure that the tensors fit together.

        Args:
            transcodes: whether the decoder may have another width than the encoder reads.

        Raises:
            ShapeError: a matrix is none, or another tensor has not the shape it demands.
        """
        for name, matrix in (("w_enc", self.w_enc), ("w_dec", self.w_dec)):
            if matrix.ndim != 2:  # noqa: PLR2004
                raise ShapeError(
                    f"Expected `{name}` with 2 dimensions, got shape {tuple(matrix.shape)}",
                    hint=ORIENTATION,
                )
        d_model, n_latents = self.w_enc.shape
        width = self.w_dec.shape[1] if transcodes else d_model
        expected = {"b_enc": (n_latents,), "w_dec": (n_latents, width), "b_dec": (width,)}
        for name, shape in expected.items():
            check_shape(name, getattr(self, name), shape, beside=self.w_enc)

    def scaled(self, scale: float) -> Weights:
        """Return the weights that do to x what these do to ``x / scale``, in units of x.

        From ``x_hat = scale * SAE(x / scale)``; activations stay as they are.

        Raises:
            SAEFormatError: the scale is not a positive finite number.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise SAEFormatError(
                f"Expected a positive finite `scale`, got {scale}",
                hint="It is what inputs are divided by, for instance sqrt(mean(x**2))",
            )
        if scale == 1:
            return self
        return Weights(self.w_enc / scale, self.b_enc, self.w_dec * scale, self.b_dec * scale)

    def centred_bias(self) -> Tensor:
        """Return the encoder bias with the subtraction of `b_dec` from the input folded in.

        From ``(x - b_dec) @ w_enc + b_enc = x @ w_enc + (b_enc - b_dec @ w_enc)``.
        """
        return self.b_enc - self.b_dec @ self.w_enc


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], *, beside: Tensor) -> None:
    """Make sure that a tensor has the shape which the encoder demands.

    Raises:
        ShapeError: it has another.
    """
    if tuple(tensor.shape) != shape:
        raise ShapeError(
            f"Expected `{name}` of shape {shape}, got {tuple(tensor.shape)}"
            f" - beside `w_enc` of shape {tuple(beside.shape)}",
            hint=f"{ORIENTATION}; transpose matrices that other libraries keep the other way round",
        )
