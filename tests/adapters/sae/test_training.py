from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from aegir_adapters.sae import TopKSAE, UnusableActivationsError, fidelity, train_topk, training
from aegir_stream.errors import ShapeError


class Dictionary(NamedTuple):
    """Directions, and tokens made of them."""

    directions: torch.Tensor
    tokens: torch.Tensor


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    """Give tokens that are sums of 3 out of 48 known directions in 32 dimensions."""
    draws = torch.Generator().manual_seed(0)
    directions = torch.randn(48, 32, generator=draws)
    directions /= directions.norm(dim=1, keepdim=True)
    active = torch.rand(9000, 48, generator=draws).topk(3).indices
    sizes = 1 + torch.rand(9000, 3, generator=draws)
    code = torch.zeros(9000, 48).scatter_(1, active, sizes)
    return Dictionary(directions, code @ directions * 3 + torch.randn(32, generator=draws))


@pytest.fixture(scope="module")
def trained(dictionary: Dictionary) -> TopKSAE:
    """Give an SAE trained on all but the last 1,000 tokens."""
    return train_topk(dictionary.tokens[:-1000], n_latents=64, k=3)


def test_training_finds_the_dictionary(trained: TopKSAE, dictionary: Dictionary) -> None:
    """Every direction the data was made of has a latent, and held-out tokens are explained."""
    decoder = trained.w_dec / trained.w_dec.norm(dim=1, keepdim=True)
    similarity = (decoder @ dictionary.directions.T).amax(0)
    figures = fidelity(trained, dictionary.tokens[-1000:])
    assert similarity.min() > 0.95
    assert figures.fvu < 0.05
    assert figures.l0 == pytest.approx(3, abs=0.05)


def test_decoder_rows_share_one_norm(trained: TopKSAE) -> None:
    """Rows are of unit norm, times the scale that was folded in."""
    norms = trained.w_dec.norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand_as(norms))


def test_a_seed_decides_everything_and_disturbs_nothing(dictionary: Dictionary) -> None:
    """The same seed gives the same weights, another seed others; torch's own state stays."""
    state = torch.get_rng_state()
    identities = [
        train_topk(dictionary.tokens, n_latents=64, k=3, steps=5, seed=seed).identity()
        for seed in (4, 4, 5)
    ]
    assert identities[0] == identities[1] != identities[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_training_works_where_gradients_and_precision_are_off(dictionary: Dictionary) -> None:
    """Called under no_grad and autocast, it learns what it learns elsewhere."""
    plain = train_topk(dictionary.tokens, n_latents=64, k=3, steps=5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = train_topk(dictionary.tokens, n_latents=64, k=3, steps=5)
    assert inside.identity() == plain.identity()


def test_the_result_keeps_no_graph(trained: TopKSAE) -> None:
    """What training leaves behind are constants."""
    assert not any(tensor.requires_grad for tensor in trained.tensors().values())


def test_silent_latents_learn_what_the_others_leave(dictionary: Dictionary) -> None:
    """Only latents that fired are trained, until others have been silent long enough to count."""
    learner = training._Learner(dictionary.tokens, n_latents=64, k=1, seed=0)
    learner.loss(4).backward()  # type: ignore[no-untyped-call]
    fired = learned_rows(learner)
    assert 0 < fired <= 4
    learner._silent_steps.fill_(training.DEAD_AFTER_STEPS)
    learner.loss(4).backward()  # type: ignore[no-untyped-call]
    assert learned_rows(learner) > fired + 4


def learned_rows(learner: training._Learner) -> int:
    """Return how many decoder rows have a gradient."""
    gradient = learner.weights.w_dec.grad
    assert gradient is not None
    return int(gradient.any(1).sum())


def test_every_step_is_reported(dictionary: Dictionary) -> None:
    """`on_step` sees the steps in order and a loss that falls."""
    seen: list[tuple[int, float]] = []
    train_topk(
        dictionary.tokens, n_latents=64, k=3, steps=30, on_step=lambda *step: seen.append(step)
    )
    assert [step for step, _ in seen] == list(range(1, 31))
    assert seen[-1][1] < seen[0][1] / 2


@pytest.mark.parametrize("shape", [(0, 8), (8,), (2, 3, 8)])
def test_activations_must_be_rows(shape: tuple[int, ...]) -> None:
    """The message names the shape that came and the remedy."""
    with pytest.raises(ShapeError, match=r"\(n, d_model\), got \(.*Flatten"):
        train_topk(torch.zeros(shape), n_latents=4, k=2)


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_fit_the_width(k: int) -> None:
    """An impossible k is refused before anything is computed."""
    with pytest.raises(ShapeError, match=rf"1\.\.4, got {k}"):
        train_topk(torch.rand(10, 8), n_latents=4, k=k)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_activations_must_be_finite(bad: float) -> None:
    """A diverged model is noticed before it is learnt."""
    x = torch.rand(10, 8)
    x[3, 2] = bad
    with pytest.raises(UnusableActivationsError, match="finite"):
        train_topk(x, n_latents=4, k=2)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_activations_must_differ(value: float) -> None:
    """Nothing can be learnt from one token many times."""
    with pytest.raises(UnusableActivationsError, match="10 equal rows"):
        train_topk(torch.full((10, 8), value), n_latents=4, k=2)
