"""A small TopK SAE, trained in seconds on activations that fit into memory.

The recipe of Gao et al. 2024 (arXiv:2406.04093): unit decoder rows, an encoder that starts as the
decoder's transpose, and an auxiliary loss that lets dead latents explain what the others leave.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from aegir_adapters.sae.autoencoder import check_k
from aegir_adapters.sae.fidelity import total_variance
from aegir_adapters.sae.selection import largest
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.weights import Weights
from aegir_stream.errors import AegirError, ShapeError

DEAD_AFTER_STEPS = 40
AUXILIARY_LATENTS = 32
AUXILIARY_SHARE = 1 / 32
DECAY_SHARE = 0.2


class UnusableActivationsError(AegirError, ValueError):
    """Activations hold nothing that an SAE could learn: not finite, or all equal."""


def train_topk(
    activations: Tensor,
    *,
    n_latents: int,
    k: int,
    steps: int = 300,
    batch_size: int = 512,
    learning_rate: float = 4e-3,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> TopKSAE:
    """Train a TopK SAE on activations.

    Deterministic for a seed, and leaves torch's global random state alone. The input is scaled to
    a mean square of 1 per dimension; the scale is folded into the weights.

    Args:
        activations: residuals to learn from. Shape (n, d_model), any floating dtype.
        n_latents: width of the SAE.
        k: latents kept for each token.
        steps: optimizer steps.
        batch_size: tokens drawn, with replacement, for each step.
        learning_rate: of Adam, decaying to zero over the last fifth of the steps.
        seed: of the first decoder and of the draws.
        on_step: called after each step with the steps done and the loss.

    Raises:
        ShapeError: activations are no matrix with rows, or k is not in 1..n_latents.
        UnusableActivationsError: activations are not all finite, or all equal.
    """
    check_k(k, n_latents)
    _check(activations)
    x = activations.detach().float()
    scale = x.square().mean().sqrt().item()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        learner = _Learner(x / scale, n_latents=n_latents, k=k, seed=seed)
        optimizer = torch.optim.Adam(learner.weights, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (steps - step) / max(1.0, DECAY_SHARE * steps))
        )
        for step in range(1, steps + 1):
            loss = learner.loss(batch_size)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            learner.renormalise()
            if on_step is not None:
                on_step(step, loss.item())
    return TopKSAE(learner.weights, k=k, scale=scale)


class _Learner:
    """Weights in training, the draws they see, and how long each latent has been silent."""

    def __init__(self, x: Tensor, *, n_latents: int, k: int, seed: int) -> None:
        self._x = x
        self._k = k
        self._variance = total_variance(x).float()
        self._draws = torch.Generator(x.device).manual_seed(seed)
        self._silent_steps = torch.zeros(n_latents, dtype=torch.int64, device=x.device)
        self.weights = self._initial(n_latents)

    def _initial(self, n_latents: int) -> Weights:
        shape = (n_latents, self._x.shape[1])
        w_dec = torch.randn(shape, generator=self._draws, device=self._x.device)
        w_dec /= w_dec.norm(dim=1, keepdim=True)
        b_enc = torch.zeros(n_latents, device=self._x.device)
        weights = Weights(w_dec.T.contiguous(), b_enc, w_dec, self._x.mean(0))
        for tensor in weights:
            tensor.requires_grad_()
        return weights

    def loss(self, batch_size: int) -> Tensor:
        """Return ``(|e|^2 + AuxK / 32) / variance`` over a fresh batch, e its error."""
        x = self._batch(batch_size)
        w_enc, b_enc, w_dec, b_dec = self.weights
        scores = torch.addmm(b_enc, x - b_dec, w_enc)
        _, indices = largest(scores.detach(), k=self._k)
        activations = scores.gather(1, indices).relu()
        error = x - b_dec - _decode(activations, indices, w_dec)
        self._listen(activations, indices)
        loss = error.square().sum(1).mean() + AUXILIARY_SHARE * self._auxiliary(scores, error)
        return loss / self._variance

    def _batch(self, size: int) -> Tensor:
        rows = torch.randint(
            self._x.shape[0], (size,), generator=self._draws, device=self._x.device
        )
        return self._x[rows]

    def _listen(self, activations: Tensor, indices: Tensor) -> None:
        self._silent_steps += 1
        self._silent_steps[indices[activations > 0]] = 0

    def _auxiliary(self, scores: Tensor, error: Tensor) -> Tensor:
        """Return how badly the dead latents alone would explain the error that is left."""
        dead = self._silent_steps >= DEAD_AFTER_STEPS
        if not dead.any():
            return error.new_zeros(())
        scores = scores.masked_fill(~dead, -torch.inf)
        indices = scores.topk(min(AUXILIARY_LATENTS, dead.numel())).indices
        explained = _decode(scores.gather(1, indices).relu(), indices, self.weights.w_dec)
        return (error.detach() - explained).square().sum(1).mean()

    @torch.no_grad()
    def renormalise(self) -> None:
        """Give every decoder row unit norm again, so that activations carry the size."""
        w_dec = self.weights.w_dec
        w_dec /= w_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(w_dec.dtype).tiny)


def _decode(activations: Tensor, indices: Tensor, w_dec: Tensor) -> Tensor:
    return functional.embedding_bag(indices, w_dec, per_sample_weights=activations, mode="sum")


def _check(activations: Tensor) -> None:
    if activations.ndim != 2 or activations.shape[0] == 0:  # noqa: PLR2004
        raise ShapeError(
            f"Expected activations of shape (n, d_model), got {tuple(activations.shape)}",
            hint="Flatten batch and sequence with x.reshape(-1, x.shape[-1]), padding left out",
        )
    if not bool(activations.isfinite().all()):
        raise UnusableActivationsError(
            "Expected finite activations, got NaN or infinity",
            hint="Find the forward that made them; a model in float16 often overflows",
        )
    if bool((activations == activations[0]).all()):
        raise UnusableActivationsError(
            f"Expected activations that differ, got {activations.shape[0]} equal rows",
            hint="Collect them from many different tokens",
        )
