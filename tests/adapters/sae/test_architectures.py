"""Every architecture against its published formula, written out as loops over float64."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aegir_adapters.sae import JumpReLUSAE, SparseAutoencoder, StandardSAE, TopKSAE, Weights

Array = NDArray[np.float64]

CLEAR = 1e-4
"""How far a decision must be from its border for float32 and float64 to agree on it."""


class Case(NamedTuple):
    """Weights, options and tokens of one example."""

    weights: list[Array]
    x: Array
    threshold: Array
    scale: float
    centred: bool

    def given(self, **options: Any) -> dict[str, Any]:
        """Return what an SAE is made from."""
        weights = Weights(*(torch.from_numpy(array) for array in self.weights))
        return {
            "weights": weights,
            "apply_b_dec_to_input": self.centred,
            "scale": self.scale,
            **options,
        }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw weights and tokens of any small size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    d_model, n_latents, tokens = (draw(st.integers(1, high)) for high in (6, 20, 4))
    shapes = ((d_model, n_latents), (n_latents,), (n_latents, d_model), (d_model,))
    return Case(
        weights=[rng.normal(size=shape) for shape in shapes],
        x=rng.normal(size=(tokens, d_model)) * 3,
        threshold=rng.normal(size=n_latents),
        scale=draw(st.sampled_from([1.0, 0.25, 7.5])),
        centred=draw(st.booleans()),
    )


def pre_activations(case: Case, token: Array) -> list[float]:
    """Return what the encoder gives for one token."""
    w_enc, b_enc, _, b_dec = case.weights
    read = [value / case.scale - (b_dec[i] if case.centred else 0) for i, value in enumerate(token)]
    return [
        sum(read[i] * w_enc[i, j] for i in range(len(read))) + b_enc[j] for j in range(len(b_enc))
    ]


def reconstruction(case: Case, code: list[float]) -> list[float]:
    """Return what the decoder makes of one code, in units of the input."""
    _, _, w_dec, b_dec = case.weights
    return [
        case.scale * (sum(code[j] * w_dec[j, i] for j in range(len(code))) + b_dec[i])
        for i in range(len(b_dec))
    ]


def assert_computes(sae: SparseAutoencoder, case: Case, codes: list[list[float]]) -> None:
    """Compare codes, reconstructions and losses with those of the loops."""
    x = torch.from_numpy(case.x)
    got = [reconstruction(case, code) for code in codes]
    losses = [
        sum((a - b) ** 2 for a, b in zip(*pair, strict=True))
        for pair in zip(case.x, got, strict=True)
    ]
    assert_close(sae.encode(x), codes)
    assert_close(sae(x), got)
    assert_close(sae.top(x, k=1).reconstruction_loss, losses)


def assert_close(got: torch.Tensor, expected: Any) -> None:
    """Compare float32 with float64 over sums of some dozen terms."""
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


@given(case=cases())
def test_standard_is_relu_of_the_pre_activation(case: Case) -> None:
    """A standard SAE's code is relu(pre)."""
    codes = [[max(0.0, pre) for pre in pre_activations(case, token)] for token in case.x]
    assert_computes(StandardSAE(**case.given()), case, codes)


@given(case=cases())
def test_jumprelu_cuts_where_the_pre_activation_is_at_most_the_threshold(case: Case) -> None:
    """A JumpReLU SAE's code is relu(pre) where pre > threshold, and 0 elsewhere."""
    codes = []
    for token in case.x:
        pres = pre_activations(case, token)
        pairs = list(zip(pres, case.threshold, strict=True))
        assume(all(abs(pre - threshold) > CLEAR for pre, threshold in pairs))
        codes.append([max(0.0, pre) if pre > threshold else 0.0 for pre, threshold in pairs])
    sae = JumpReLUSAE(**case.given(threshold=torch.from_numpy(case.threshold)))
    assert_computes(sae, case, codes)


@given(case=cases(), data=st.data())
def test_topk_keeps_the_k_largest_and_of_those_the_positive(
    case: Case, data: st.DataObject
) -> None:
    """A TopK SAE's code is the relu of the k largest pre-activations, and 0 elsewhere."""
    k = data.draw(st.integers(1, len(case.weights[1])))
    codes = [keep_largest(pre_activations(case, token), k) for token in case.x]
    assert_computes(TopKSAE(**case.given(k=k)), case, codes)


@given(case=cases(), data=st.data())
def test_topk_can_choose_by_the_size_of_the_contribution(case: Case, data: st.DataObject) -> None:
    """With rescaling, pre times the norm of its decoder row decides, and the decoder undoes it."""
    k = data.draw(st.integers(1, len(case.weights[1])))
    norms = [case.scale * math.sqrt(sum(value**2 for value in row)) for row in case.weights[2]]
    scores = [
        [pre * norm for pre, norm in zip(pre_activations(case, token), norms, strict=True)]
        for token in case.x
    ]
    codes = [keep_largest(row, k) for row in scores]
    sae = TopKSAE(**case.given(k=k, rescale_acts_by_decoder_norm=True))
    assert_close(sae.encode(torch.from_numpy(case.x)), codes)
    undone = [[z / norm for z, norm in zip(code, norms, strict=True)] for code in codes]
    assert_close(sae(torch.from_numpy(case.x)), [reconstruction(case, code) for code in undone])


def keep_largest(scores: list[float], k: int) -> list[float]:
    """Return the relu of the k largest scores, zero elsewhere; skip what is too close to call."""
    ranked = sorted(scores, reverse=True)
    assume(k == len(scores) or ranked[k - 1] - ranked[k] > CLEAR)
    return [max(0.0, score) if score >= ranked[k - 1] else 0.0 for score in scores]


@pytest.mark.parametrize(("offset", "active"), [(-0.25, 0), (0.0, 0), (0.25, 1)])
def test_jumprelu_compares_strictly(offset: float, active: int) -> None:
    """A pre-activation that equals its threshold does not pass."""
    weights = Weights(torch.eye(1), torch.zeros(1), torch.eye(1), torch.zeros(1))
    sae = JumpReLUSAE(weights, threshold=torch.tensor([2.0]))
    top = sae.top(torch.tensor([[2.0 + offset]]), k=1)
    assert top.l0.tolist() == [active]


def test_topk_may_leave_fewer_than_k_active() -> None:
    """Negative pre-activations among the k largest become zeros, and zeros do not count."""
    weights = Weights(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3))
    top = TopKSAE(weights, k=2).top(torch.tensor([[5.0, -1.0, -2.0]]), k=2)
    assert top.activations.tolist() == [[5.0, 0.0]]
    assert top.l0.tolist() == [1]
    assert top.fired.tolist() == [True, False, False]
