"""The group-max SAE of EleutherAI's sparsify: of each group of neighbours, the largest."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from aegir_adapters.sae.autoencoder import Shared
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.weights import Weights
from aegir_stream.errors import ShapeError


class GroupMaxSAE(TopKSAE):
    """An SAE whose latents fall into k groups, of each of which the largest is kept if positive.

    Args:
        weights: see `SparseAutoencoder`.
        k: number of groups; latents with neighbouring indices share one.
        shared: see `SparseAutoencoder`.

    Raises:
        ShapeError: the weights do not fit together, or the latents do not fall into k groups of one
            size.
        SAEFormatError: as in `SparseAutoencoder`.
    """

    activation = "groupmax"

    def __init__(self, weights: Weights, *, k: int, **shared: Unpack[Shared]) -> None:
        super().__init__(weights, k=k, **shared)
        if self.n_latents % k:
            raise ShapeError(
                f"Expected latents that fall into {k} groups of one size, got {self.n_latents}",
                hint="Their number is a multiple of k",
            )

    def options(self) -> dict[str, Any]:
        """Return what beside its tensors decides on its output."""
        options = super().options()
        del options["rescale_acts_by_decoder_norm"]
        return options

    def _active(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations, descending, and latents; shapes (n, k)."""
        size = self.n_latents // self.k
        best = self._pre_activations(x).view(-1, self.k, size).max(2)
        latents = best.indices + torch.arange(0, self.n_latents, size, device=x.device)
        activations, order = best.values.relu().sort(1, descending=True)
        return activations, latents.gather(1, order)
