"""The JumpReLU SAE (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from aegir_adapters.sae.autoencoder import Shared, SparseAutoencoder
from aegir_adapters.sae.weights import Weights, check_shape


class JumpReLUSAE(SparseAutoencoder):
    """An SAE whose code is ``relu(pre) * (pre > threshold)``.

    Args:
        weights: see `SparseAutoencoder`.
        threshold: compared with the pre-activation, strictly. Shape (n_latents,).
        shared: see `SparseAutoencoder`. A scale leaves pre-activations, and with them the
            threshold, as they are.

    Raises:
        ShapeError: the tensors do not fit together.
        SAEFormatError: the scale is not a positive finite number.
    """

    activation = "jumprelu"
    threshold: Tensor

    def __init__(self, weights: Weights, *, threshold: Tensor, **shared: Unpack[Shared]) -> None:
        super().__init__(weights, **shared)
        check_shape("threshold", threshold, (self.n_latents,), beside=self.w_enc)
        self._keep("threshold", threshold.detach().to(torch.float32).contiguous())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that define it by name, the threshold included."""
        return {**super().tensors(), "threshold": self.threshold}

    def _code(self, x: Tensor) -> Tensor:
        pre = self._pre_activations(x)
        return pre.relu() * (pre > self.threshold)
