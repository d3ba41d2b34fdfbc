"""What SAEs compute, written out in float64, and how it is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aegir_adapters.sae import SparseAutoencoder

D, N, K = 12, 64, 5
"""Width, latents and, where they are few, the latents that a token keeps."""

WEIGHTS = ("w_enc", "b_enc", "w_dec", "b_dec")

Encode = Callable[[Tensor], Tensor]
Decode = Callable[[Tensor, Tensor], Tensor]


class Published(NamedTuple):
    """Files that somebody else might have written.

    Attributes:
        path: what `load_sae` is given.
        encode: codes of residuals, both in float64.
        decode: what codes stand for, of the residuals beside them; in float64.
    """

    path: Path
    encode: Encode
    decode: Decode


def draw(*shape: int, seed: int, size: float = 0.5, shift: float = 0.0) -> Tensor:
    """Return random numbers in float32, of about the sizes that weights have."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws) * size + shift


def residuals(n: int = 40, d_model: int = D) -> Tensor:
    """Return residuals that are neither centred nor of one size."""
    return draw(n, d_model, seed=97, size=2.0, shift=0.3)


def assert_same(sae: SparseAutoencoder, published: Published, x: Tensor | None = None) -> None:
    """Compare codes, the hardest latents, reconstructions and errors with the formula, to 1e-5."""
    x = residuals(d_model=sae.d_model) if x is None else x
    code = published.encode(x.double())
    rebuilt = published.decode(code, x.double())
    assert_agrees(sae, x, code, rebuilt)


def assert_agrees(sae: SparseAutoencoder, x: Tensor, code: Tensor, rebuilt: Tensor) -> None:
    """Compare codes, the hardest latents, reconstructions and errors with others, to 1e-5."""
    target = draw(*rebuilt.shape, seed=3) if sae.is_transcoder else x
    top = sae.top(x, k=8, target=target if sae.is_transcoder else None)
    expected = code.float().topk(8)
    active = expected.values > 0
    assert int(active.sum()) > 0
    assert_close(sae.encode(x), code)
    assert_close(sae(x), rebuilt)
    assert_close(top.activations, expected.values)
    assert torch.equal(top.indices[active], expected.indices[active].int())
    assert torch.equal(top.l0, (code > 0).sum(1, dtype=torch.int32))
    loss = (target.double() - rebuilt.double()).square().sum(1)
    torch.testing.assert_close(top.reconstruction_loss.double(), loss, rtol=1e-5, atol=1e-4)


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Compare numbers of about 1 to the fifth digit."""
    torch.testing.assert_close(got.float(), expected.float(), rtol=1e-5, atol=1e-5)


def formula(
    weights: Mapping[str, Tensor], activation: Encode, *, centred: bool = False
) -> tuple[Encode, Decode]:
    """Return encode and decode of ``activation((x - b_dec?) @ w_enc + b_enc) @ w_dec + b_dec``."""
    w_enc, b_enc, w_dec, b_dec = (weights[name].double() for name in WEIGHTS)

    def encode(x: Tensor) -> Tensor:
        centre = b_dec if centred else 0
        return activation((x - centre) @ w_enc + b_enc)

    def decode(code: Tensor, x: Tensor) -> Tensor:
        skip = x @ weights["skip"].double() if "skip" in weights else 0
        return code @ w_dec + b_dec + skip

    return encode, decode


def weights(n: int = N, d: int = D, *, seed: int = 1) -> dict[str, Tensor]:
    """Return weights in the orientation that the formula has them in."""
    return {
        "w_enc": draw(d, n, seed=seed),
        "b_enc": draw(n, seed=seed + 1),
        "w_dec": draw(n, d, seed=seed + 2),
        "b_dec": draw(d, seed=seed + 3),
    }


def unit(w_dec: Tensor) -> Tensor:
    """Return decoder rows of norm 1."""
    norms: Tensor = w_dec.norm(dim=1, keepdim=True)
    return w_dec / norms


def jump(threshold: Tensor) -> Encode:
    """Return the JumpReLU."""
    return lambda pre: torch.where(pre > threshold.double(), pre.relu(), 0.0)


def keep(k: int) -> Encode:
    """Return the relu of the k largest of each row, 0 elsewhere."""

    def largest(pre: Tensor) -> Tensor:
        smallest = pre.sort(1, descending=True).values[:, k - 1 : k]
        return torch.where(pre >= smallest, pre.relu(), 0.0)

    return largest


def largest_of_groups(k: int) -> Encode:
    """Return the relu of the largest of each of k groups of neighbours, 0 elsewhere."""

    def largest(pre: Tensor) -> Tensor:
        groups = pre.view(len(pre), k, -1)
        kept = torch.where(groups == groups.amax(2, keepdim=True), groups.relu(), 0.0)
        return kept.flatten(1)

    return largest
