from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aegir_adapters.sae import JumpReLUSAE, StandardSAE, TopKSAE, Weights
from aegir_stream.errors import SAEFormatError, ShapeError

MakeWeights = Callable[..., Weights]


@pytest.mark.parametrize(
    ("name", "shape"), [("b_enc", (8,)), ("w_dec", (8, 24)), ("b_dec", (24,)), ("b_dec", (1, 8))]
)
def test_tensors_that_do_not_fit_are_named(
    make_weights: MakeWeights, name: str, shape: tuple[int, ...]
) -> None:
    """The message names the tensor, its shape, the expected one, and the orientation."""
    weights = make_weights()._replace(**{name: torch.zeros(shape)})
    expected = rf"`{name}` of shape \(.*got \({shape[0]},.*`w_enc` of shape \(8, 24\).*transpose"
    with pytest.raises(ShapeError, match=expected):
        StandardSAE(weights)


def test_an_encoder_must_be_a_matrix(make_weights: MakeWeights) -> None:
    """An encoder with other than 2 dimensions is named with its shape."""
    with pytest.raises(ShapeError, match=r"`w_enc` with 2 dimensions, got shape \(5,\)"):
        StandardSAE(make_weights()._replace(w_enc=torch.zeros(5)))


def test_a_threshold_must_have_one_value_per_latent(make_weights: MakeWeights) -> None:
    """A single threshold for all latents is not guessed at."""
    with pytest.raises(ShapeError, match=r"`threshold` of shape \(24,\), got \(1,\)"):
        JumpReLUSAE(make_weights(), threshold=torch.zeros(1))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_positive_and_finite(make_weights: MakeWeights, scale: float) -> None:
    """Nothing can be divided by another."""
    with pytest.raises(SAEFormatError, match=f"positive finite `scale`, got {scale}"):
        StandardSAE(make_weights(), scale=scale)


def test_a_decoder_row_of_zeros_cannot_be_rescaled_by(make_weights: MakeWeights) -> None:
    """Division by a norm of zero is refused rather than turned into NaN."""
    weights = make_weights()
    weights.w_dec[3] = 0
    with pytest.raises(SAEFormatError, match=r"1 rows? of zeros"):
        TopKSAE(weights, k=2, rescale_acts_by_decoder_norm=True)


@pytest.mark.parametrize("k", [0, 25])
def test_a_topk_sae_needs_a_possible_k(make_weights: MakeWeights, k: int) -> None:
    """The message names k and the number of latents."""
    with pytest.raises(ShapeError, match=rf"1\.\.24, got {k}"):
        TopKSAE(make_weights(), k=k)
