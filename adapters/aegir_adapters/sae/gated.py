"""The gated SAE (Rajamanoharan et al. 2024, arXiv:2404.16014)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from aegir_adapters.sae.autoencoder import Shared, SparseAutoencoder
from aegir_adapters.sae.weights import Weights, check_shape


class GatedSAE(SparseAutoencoder):
    """An SAE that decides by one affine map whether a latent fires, and by another how hard.

    With ``shared = (x - b_dec) @ w_enc``, its code is ``relu(shared * exp(r_mag) + b_mag)`` where
    ``shared + b_gate > 0``, and 0 elsewhere.

    Args:
        weights: see `SparseAutoencoder`; their `b_enc` is the bias b_gate of the decision.
        b_mag: bias of the size. Shape (n_latents,).
        r_mag: logarithm of the factor between the two maps. Shape (n_latents,).
        shared: see `SparseAutoencoder`. A scale leaves codes as they are.

    Raises:
        ShapeError: the tensors do not fit together.
        SAEFormatError: as in `SparseAutoencoder`.
    """

    activation = "gated"
    b_mag: Tensor
    r_mag: Tensor
    shared_bias: Tensor
    ratio: Tensor

    def __init__(
        self, weights: Weights, *, b_mag: Tensor, r_mag: Tensor, **shared: Unpack[Shared]
    ) -> None:
        super().__init__(weights, **shared)
        for name, tensor in (("b_mag", b_mag), ("r_mag", r_mag)):
            check_shape(name, tensor, (self.n_latents,), beside=self.w_enc)
            self._keep(name, tensor.detach().to(torch.float32).contiguous())
        centring = self.b_dec @ self.w_enc if self.apply_b_dec_to_input else 0 * self.b_enc
        self._keep("shared_bias", -centring)
        self._keep("ratio", self.r_mag.exp())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that define it by name, as SAELens names its biases."""
        tensors = super().tensors()
        gate = tensors.pop("b_enc")
        return {**tensors, "b_gate": gate, "b_mag": self.b_mag, "r_mag": self.r_mag}

    def _code(self, x: Tensor) -> Tensor:
        shared = torch.addmm(self.shared_bias, x, self.w_enc)
        size = torch.addcmul(self.b_mag, shared, self.ratio).relu()
        return size * (shared + self.b_enc > 0)
