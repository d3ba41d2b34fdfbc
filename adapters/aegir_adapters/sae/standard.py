"""The standard SAE (Bricken et al. 2023, "Towards Monosemanticity")."""

from __future__ import annotations

from torch import Tensor

from aegir_adapters.sae.autoencoder import SparseAutoencoder


class StandardSAE(SparseAutoencoder):
    """An SAE whose code is ``relu(pre)``."""

    activation = "standard"

    def _code(self, x: Tensor) -> Tensor:
        return self._pre_activations(x).relu()
