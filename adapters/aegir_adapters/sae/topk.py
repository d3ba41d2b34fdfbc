"""The TopK SAE (Gao et al. 2024, arXiv:2406.04093)."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from aegir_adapters.sae.autoencoder import Code, Shared, SparseAutoencoder, check_k
from aegir_adapters.sae.selection import largest
from aegir_adapters.sae.weights import Weights
from aegir_stream.errors import SAEFormatError


class TopKSAE(SparseAutoencoder):
    """An SAE whose code keeps the k largest pre-activations, and of those the positive ones.

    Args:
        weights: see `SparseAutoencoder`.
        k: latents kept for each token.
        rescale_acts_by_decoder_norm: whether pre-activations are multiplied by the norms of the
            decoder's rows before the choice, and divided by them again in the decoder. These are
            the norms after the scale was folded in.
        shared: see `SparseAutoencoder`.

    Raises:
        ShapeError: the weights do not fit together, or k is not in 1..n_latents.
        SAEFormatError: the scale is not a positive finite number, or a row that is to be divided by
            its norm is zero.
    """

    activation = "topk"
    decoder_norm: Tensor | None

    def __init__(
        self,
        weights: Weights,
        *,
        k: int,
        rescale_acts_by_decoder_norm: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(weights, **shared)
        check_k(k, self.n_latents)
        self.k = k
        norm = _row_norms(self.w_dec) if rescale_acts_by_decoder_norm else None
        self.register_buffer("decoder_norm", norm, persistent=False)

    def options(self) -> dict[str, Any]:
        """Return what beside its tensors decides on its output, as SAELens names it."""
        rescale = self.decoder_norm is not None
        return {**super().options(), "k": self.k, "rescale_acts_by_decoder_norm": rescale}

    def _code(self, x: Tensor) -> Tensor:
        activations, indices = self._active(x)
        code = activations.new_zeros(x.shape[0], self.n_latents)
        return code.scatter_(1, indices, activations)

    def _active(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations, descending, and latents; shapes (n, k)."""
        scores = self._pre_activations(x)
        if self.decoder_norm is not None:
            scores = scores * self.decoder_norm
        _, indices = largest(scores.detach(), k=self.k)
        return scores.gather(1, indices).relu(), indices

    def _reconstruct(self, code: Tensor) -> Tensor:
        if self.decoder_norm is not None:
            code = code / self.decoder_norm
        return super()._reconstruct(code)

    def _reconstruct_active(self, activations: Tensor, indices: Tensor) -> Tensor:
        if self.decoder_norm is not None:
            activations = activations / self.decoder_norm[indices]
        return self.b_dec + functional.embedding_bag(
            indices, self.w_dec, per_sample_weights=activations, mode="sum"
        )

    def _describe(self, x: Tensor, k: int) -> Code:
        activations, indices = self._active(x)
        active = activations > 0
        # A count and not a boolean assignment, which would wait for the device.
        fired = active.new_zeros(self.n_latents, dtype=torch.int32)
        fired.scatter_add_(0, indices.flatten(), active.flatten().to(torch.int32))
        padding = (0, max(0, k - self.k))
        return Code(
            functional.pad(indices[:, :k].to(torch.int32), padding),
            functional.pad(activations[:, :k], padding),
            self._reconstruct_active(activations, indices),
            active.sum(1, dtype=torch.int32),
            fired > 0,
        )


def _row_norms(w_dec: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(w_dec, dim=1)
    zero = int((norms == 0).sum())
    if zero:
        raise SAEFormatError(
            f"Expected decoder rows with a norm to rescale by, got {zero} rows of zeros",
            hint="Drop those latents, or set rescale_acts_by_decoder_norm to false",
        )
    return norms
