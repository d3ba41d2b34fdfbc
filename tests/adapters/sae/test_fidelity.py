from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from aegir_adapters.sae import SparseAutoencoder, StandardSAE, Weights, fidelity
from aegir_stream.errors import ShapeError

MakeSAE = Callable[..., SparseAutoencoder]
MakeTokens = Callable[..., torch.Tensor]


def test_figures_follow_their_definitions(make_sae: MakeSAE, make_tokens: MakeTokens) -> None:
    """FVU, L0, dead share, loss and variance equal sums written out token by token."""
    sae, x = make_sae(), make_tokens(40)
    code, rebuilt, mean = sae.encode(x), sae(x), x.mean(0)
    losses = [float((x[i] - rebuilt[i]).square().sum()) for i in range(40)]
    spreads = [float((x[i] - mean).square().sum()) for i in range(40)]
    figures = fidelity(sae, x)
    assert figures.fvu == pytest.approx(sum(losses) / sum(spreads), rel=1e-5)
    assert figures.reconstruction_loss == pytest.approx(sum(losses) / 40, rel=1e-5)
    assert figures.variance == pytest.approx(sum(spreads) / 40, rel=1e-5)
    assert figures.l0 == pytest.approx(int((code > 0).sum()) / 40)
    assert figures.dead_share == pytest.approx(1 - int((code > 0).any(0).sum()) / 24)
    assert figures.n_tokens == 40


def test_a_perfect_sae_leaves_nothing_unexplained(make_tokens: MakeTokens) -> None:
    """An SAE with a latent for each direction and its opposite has an FVU of 0."""
    both = torch.cat([torch.eye(8), -torch.eye(8)])
    sae = StandardSAE(Weights(both.T, torch.zeros(16), both, torch.zeros(8)))
    figures = fidelity(sae, make_tokens(100))
    assert figures.fvu == pytest.approx(0, abs=1e-10)
    assert figures.l0 == 8
    assert figures.dead_share == 0


def test_equal_tokens_have_no_variance_to_explain(
    make_sae: MakeSAE, make_tokens: MakeTokens
) -> None:
    """The FVU of tokens that are all equal is infinite, not an exception."""
    assert math.isinf(fidelity(make_sae(), make_tokens(1).expand(4, 8)).fvu)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_tokens_are_refused(make_sae: MakeSAE, make_tokens: MakeTokens, n: int) -> None:
    """A variance takes at least two tokens."""
    with pytest.raises(ShapeError, match=f"at least 2 tokens .* got {n}"):
        fidelity(make_sae(), make_tokens(n))
