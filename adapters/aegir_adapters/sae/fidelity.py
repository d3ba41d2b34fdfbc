"""How well an SAE fits activations."""

from __future__ import annotations

import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.sae.autoencoder import SparseAutoencoder
from aegir_stream.errors import ShapeError


class Fidelity(Struct, frozen=True, kw_only=True):
    """How well an SAE fits a set of tokens.

    Attributes:
        fvu: fraction of variance unexplained, ``sum ||x - SAE(x)||^2 / sum ||x - mean(x)||^2``, as
            EleutherAI's sparsify computes it; 0 is perfect, 1 no better than the mean.
        l0: mean number of active latents per token.
        dead_share: share of the latents that fired for none of the tokens.
        reconstruction_loss: mean ``||x - SAE(x)||^2`` per token, summed over d_model.
        variance: mean ``||x - mean(x)||^2`` per token; keep it as the fixed reference for later
            tokens, whose own variance moves with the policy.
        n_tokens: number of tokens.
    """

    fvu: float
    l0: float
    dead_share: float
    reconstruction_loss: float
    variance: float
    n_tokens: int


@torch.no_grad()
def fidelity(sae: SparseAutoencoder, x: Tensor, *, target: Tensor | None = None) -> Fidelity:
    """Return how well an SAE fits activations; the FVU is infinite where they are all equal.

    Args:
        sae: the SAE to judge.
        x: residuals. Shape (n, d_model), any floating dtype.
        target: of a transcoder, what it predicts. Shape (n, d_out).

    Raises:
        ShapeError: x is not of shape (n, d_model), or has fewer than 2 rows; or the target does not
            fit.
        OptionError: a transcoder has no target.
    """
    top = sae.top(x, k=1, target=target)
    if x.shape[0] < 2:  # noqa: PLR2004
        raise ShapeError(
            f"Expected at least 2 tokens to take a variance of, got {x.shape[0]}",
            hint="Give the activations of many tokens, some thousands for a steady figure",
        )
    loss = top.reconstruction_loss.double().mean()
    variance = total_variance(x if target is None else target)
    return Fidelity(
        fvu=(loss / variance).item(),
        l0=top.l0.double().mean().item(),
        dead_share=1 - top.fired.double().mean().item(),
        reconstruction_loss=loss.item(),
        variance=variance.item(),
        n_tokens=x.shape[0],
    )


def total_variance(x: Tensor) -> Tensor:
    """Return mean ``||x - mean(x)||^2`` over the rows of x, float64."""
    return x.double().var(0, correction=0).sum()
