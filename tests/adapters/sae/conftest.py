from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aegir_adapters.sae import (
    GatedSAE,
    JumpReLUSAE,
    SparseAutoencoder,
    StandardSAE,
    TopKSAE,
    Weights,
)

MakeWeights = Callable[..., Weights]


@pytest.fixture(scope="session")
def sae_lens() -> Any:
    """Give SAELens, whose import takes some 8 s, warns of its own and silences transformers."""
    logger = logging.getLogger("transformers")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("sae_lens")
    logger.setLevel(level)
    return module


@pytest.fixture(scope="session")
def make_weights() -> MakeWeights:
    """Give random weights of a size and seed."""

    def make(d_model: int = 8, n_latents: int = 24, *, seed: int = 0) -> Weights:
        draws = torch.Generator().manual_seed(seed)
        shapes = ((d_model, n_latents), (n_latents,), (n_latents, d_model), (d_model,))
        return Weights(*(torch.randn(shape, generator=draws) for shape in shapes))

    return make


@pytest.fixture(
    scope="session",
    params=["standard", "topk", "topk_rescaled", "jumprelu", "gated", "layer_norm"],
)
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
        if request.param == "gated":
            bias = weights.b_enc
            return GatedSAE(weights, b_mag=bias.roll(1), r_mag=bias.roll(2) / 2)
        if request.param == "layer_norm":
            return StandardSAE(weights, normalize_activations="layer_norm")
        rescale = request.param == "topk_rescaled"
        return TopKSAE(weights, k=min(5, n_latents), rescale_acts_by_decoder_norm=rescale)

    return make


@pytest.fixture(scope="session")
def make_tokens() -> Callable[..., torch.Tensor]:
    """Give random residuals of a number, width and seed."""

    def make(n: int, d_model: int = 8, *, seed: int = 1) -> torch.Tensor:
        return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))

    return make
