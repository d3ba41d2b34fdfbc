"""Every architecture against its published formula, written out as loops over float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aegir_adapters.sae import (
    GatedSAE,
    JumpReLUSAE,
    SparseAutoencoder,
    StandardSAE,
    TopKSAE,
    Transcoding,
    Weights,
    autoencoder,
)
from aegir_stream.errors import OptionError, SAEFormatError, ShapeError

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
def test_gated_decides_by_one_map_and_sizes_by_another(case: Case, data: st.DataObject) -> None:
    """A gated SAE's code is relu(shared exp(r_mag) + b_mag) where shared + b_gate > 0, else 0."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    b_gate = case.weights[1]
    b_mag, r_mag = (rng.normal(size=len(b_gate)) for _ in range(2))
    codes = []
    for token in case.x:
        gates = pre_activations(case, token)
        assume(all(abs(gate) > CLEAR for gate in gates))
        shared = [gate - bias for gate, bias in zip(gates, b_gate, strict=True)]
        sizes = [
            max(0.0, value * math.exp(ratio) + bias)
            for value, ratio, bias in zip(shared, r_mag, b_mag, strict=True)
        ]
        codes.append([size if gate > 0 else 0.0 for size, gate in zip(sizes, gates, strict=True)])
    options = case.given(b_mag=torch.from_numpy(b_mag), r_mag=torch.from_numpy(r_mag))
    assert_computes(GatedSAE(**options), case, codes)


@given(case=cases(), width=st.integers(1, 7), skips=st.booleans())
def test_a_transcoder_predicts_another_place(case: Case, *, width: int, skips: bool) -> None:
    """Its prediction is z @ w_dec + b_dec + x @ w_skip.T, and the loss is that of the target."""
    rng = np.random.default_rng(case.weights[0].shape[1])
    w_enc, b_enc, *_ = case.weights
    d_model, n_latents = w_enc.shape
    w_dec, b_dec = rng.normal(size=(n_latents, width)), rng.normal(size=width)
    w_skip = rng.normal(size=(width, d_model))
    case = case._replace(weights=[w_enc, b_enc, w_dec, b_dec], scale=1.0, centred=False)
    codes = [[max(0.0, pre) for pre in pre_activations(case, token)] for token in case.x]
    skipped = case.x @ w_skip.T if skips else np.zeros((len(case.x), width))
    predicted = np.array([reconstruction(case, code) for code in codes]) + skipped
    target = rng.normal(size=predicted.shape)
    transcoding = Transcoding(w_skip=torch.from_numpy(w_skip) if skips else None)
    sae = StandardSAE(**case.given(transcoding=transcoding))
    x = torch.from_numpy(case.x)
    assert_close(sae(x), predicted)
    got = sae.top(x, k=1, target=torch.from_numpy(target)).reconstruction_loss
    assert_close(got, ((target - predicted) ** 2).sum(1))
    assert sae.architecture == ("skip_transcoder" if skips else "transcoder")
    assert (sae.d_model, sae.d_out) == (d_model, width)


@given(case=cases(), kind=st.sampled_from(["constant_norm_rescale", "layer_norm"]))
def test_rows_can_be_normalised_and_the_reconstruction_is_put_back(case: Case, kind: Any) -> None:
    """The code is that of the normalised row; reconstruction and loss are in units of the input."""
    d_model = case.x.shape[1]
    assume(d_model > 1)
    if kind == "layer_norm":
        shift = case.x.mean(1, keepdims=True)
        size = case.x.std(1, ddof=1, keepdims=True)
        rows, back = (case.x - shift) / (size + 1e-5), size
    else:
        shift, back = np.zeros((len(case.x), 1)), np.linalg.norm(case.x, axis=1, keepdims=True)
        back = back / math.sqrt(d_model)
        rows = case.x / back
    assume(float(back.min()) > CLEAR)
    case = case._replace(scale=1.0)
    codes = [[max(0.0, pre) for pre in pre_activations(case, row)] for row in rows]
    got = np.array([reconstruction(case, code) for code in codes]) * back + shift
    sae = StandardSAE(**case.given(normalize_activations=kind))
    x = torch.from_numpy(case.x)
    assert_close(sae.encode(x), codes)
    assert_close(sae(x), got)
    assert_close(sae.top(x, k=1).reconstruction_loss, ((case.x - got) ** 2).sum(1))


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


MakeWeights = Callable[..., Weights]


def transcoder(weights: Weights, width: int, **options: Any) -> StandardSAE:
    """Return a transcoder that predicts a place of a width."""
    weights = weights._replace(w_dec=weights.w_dec[:, :width], b_dec=weights.b_dec[:width])
    given = {"apply_b_dec_to_input": False, "transcoding": Transcoding(), **options}
    return StandardSAE(weights, **given)


def test_a_target_is_read_in_the_same_pieces(
    make_weights: MakeWeights, make_tokens: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token is compared with its own target, however many are read at once."""
    skip = Transcoding(w_skip=torch.ones(5, 8))
    sae, x = transcoder(make_weights(), 5, transcoding=skip), make_tokens(50)
    target = torch.arange(250.0).view(50, 5)
    whole = sae.top(x, k=3, target=target)
    monkeypatch.setattr(autoencoder, "CHUNK_ELEMENTS", 7 * sae.n_latents)
    torch.testing.assert_close(
        sae.top(x, k=3, target=target).reconstruction_loss, whole.reconstruction_loss
    )
    expected = (target - sae(x)).square().sum(1)
    torch.testing.assert_close(whole.reconstruction_loss, expected)


def test_a_transcoder_needs_a_target(make_weights: MakeWeights) -> None:
    """Without it there is nothing that its prediction could be compared with."""
    sae = transcoder(make_weights(), 5)
    with pytest.raises(OptionError, match=r"`target` of a transcoder, got None beside x \(3, 8\)"):
        sae.top(torch.zeros(3, 8), k=1)
    with pytest.raises(ShapeError, match=r"shape \(3, 5\), got \(3, 8\)"):
        sae.top(torch.zeros(3, 8), k=1, target=torch.zeros(3, 8))


def test_a_transcoder_subtracts_nothing_from_its_input(make_weights: MakeWeights) -> None:
    """Its `b_dec` belongs to another place, even where that is as wide."""
    with pytest.raises(SAEFormatError, match=r"apply_b_dec_to_input=False for a transcoder"):
        transcoder(make_weights(), 8, apply_b_dec_to_input=True)


def test_only_a_transcoder_may_be_wider_at_one_end(make_weights: MakeWeights) -> None:
    """A decoder of another width is a mistake in an SAE."""
    with pytest.raises(ShapeError, match=r"`w_dec` of shape \(24, 8\), got \(24, 5\)"):
        transcoder(make_weights(), 5, transcoding=None)


def test_a_skip_connection_must_fit(make_weights: MakeWeights) -> None:
    """One that is transposed is named with both shapes."""
    skip = Transcoding(w_skip=torch.zeros(8, 5))
    with pytest.raises(ShapeError, match=r"`w_skip` of shape \(5, 8\), got \(8, 5\)"):
        transcoder(make_weights(), 5, transcoding=skip)


@pytest.mark.parametrize("name", ["b_mag", "r_mag"])
def test_a_gated_sae_needs_whole_biases(make_weights: MakeWeights, name: str) -> None:
    """Each latent has its own."""
    whole: dict[str, Any] = {"b_mag": torch.zeros(24), "r_mag": torch.zeros(24)}
    with pytest.raises(ShapeError, match=rf"`{name}` of shape \(24,\), got \(1,\)"):
        GatedSAE(make_weights(), **{**whole, name: torch.zeros(1)})


def test_codes_of_normalised_rows_stand_beside_them(make_weights: MakeWeights) -> None:
    """A code alone does not say in what units its row was."""
    sae = StandardSAE(make_weights(), normalize_activations="layer_norm")
    with pytest.raises(OptionError, match=r"residuals beside their code.*layer_norm.*decode\("):
        sae.decode(torch.zeros(2, 24))
