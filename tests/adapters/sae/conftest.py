from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aegir_adapters.sae import JumpReLUSAE, SparseAutoencoder, StandardSAE, TopKSAE, Weights

MakeWeights = Callable[..., Weights]


@pytest.fixture(scope="session")
def make_weights() -> MakeWeights:
    """Give random weights of a size and seed."""

    def make(d_model: int = 8, n_latents: int = 24, *, seed: int = 0) -> Weights:
        draws = torch.Generator().manual_seed(seed)
        shapes = ((d_model, n_latents), (n_latents,), (n_latents, d_model), (d_model,))
        return Weights(*(torch.randn(shape, generator=draws) for shape in shapes))

    return make


@pytest.fixture(scope="session", params=["standard", "topk", "topk_rescaled", "jumprelu"])
def make_sae(
    request: pytest.FixtureRequest, make_weights: MakeWeights
) -> Callable[..., SparseAutoencoder]:
    """Give an SAE of a size and seed, of each architecture in turn."""

    def make(d_model: int = 8, n_latents: int = 24, *, seed: int = 0) -> SparseAutoencoder:
        weights = make_weights(d_model, n_latents, seed=seed)
        if request.param == "standard":
            return StandardSAE(weights)
        if request.param == "jumprelu":
            return JumpReLUSAE(weights, threshold=weights.b_enc.abs())
        rescale = request.param == "topk_rescaled"
        return TopKSAE(weights, k=min(5, n_latents), rescale_acts_by_decoder_norm=rescale)

    return make


@pytest.fixture(scope="session")
def make_tokens() -> Callable[..., torch.Tensor]:
    """Give random residuals of a number, width and seed."""

    def make(n: int, d_model: int = 8, *, seed: int = 1) -> torch.Tensor:
        return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))

    return make
