"""The fast path that runs beside training, against the plain code of the same SAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from aegir_adapters.sae import SparseAutoencoder, StandardSAE, TopKSAE, TopLatents, autoencoder
from aegir_stream.errors import SAEFormatError, ShapeError

MakeSAE = Callable[..., SparseAutoencoder]
MakeTokens = Callable[..., torch.Tensor]
MakeWeights = Callable[..., Any]


def assert_same(got: TopLatents, expected: TopLatents) -> None:
    """Compare everything but the meaningless indices of padding."""
    torch.testing.assert_close(got.activations, expected.activations)
    real = expected.activations > 0
    assert torch.equal(got.indices[real], expected.indices[real])
    torch.testing.assert_close(got.reconstruction_loss, expected.reconstruction_loss)
    assert torch.equal(got.l0, expected.l0)
    assert torch.equal(got.fired, expected.fired)


@given(data=st.data(), seed=st.integers(0, 2**32), n=st.integers(0, 9))
def test_top_reports_the_code(
    make_sae: MakeSAE, make_tokens: MakeTokens, data: st.DataObject, seed: int, n: int
) -> None:
    """Top latents are the largest of the code; loss, l0 and fired are those of the whole code."""
    n_latents = data.draw(st.integers(1, 96))
    k = data.draw(st.integers(1, n_latents))
    sae, x = make_sae(8, n_latents, seed=seed), make_tokens(n, seed=seed + 1)
    code = sae.encode(x)
    values, indices = code.topk(k)
    loss = (x - sae.decode(code, x)).square().sum(1)
    active = code > 0
    expected = TopLatents(
        indices.int(), values, loss, active.sum(1, dtype=torch.int32), active.any(0)
    )
    got = sae.top(x, k=k)
    assert_same(got, expected)
    assert got.indices.shape == got.activations.shape == (n, k)
    assert [part.dtype for part in got] == [part.dtype for part in expected]


def test_reconstruction_does_not_depend_on_how_many_latents_are_reported(
    make_sae: MakeSAE, make_tokens: MakeTokens
) -> None:
    """The loss is that of all active latents, whatever k is."""
    sae, x = make_sae(), make_tokens(50)
    few, many = sae.top(x, k=1), sae.top(x, k=24)
    assert torch.equal(few.reconstruction_loss, many.reconstruction_loss)
    assert torch.equal(few.l0, many.l0)
    assert torch.equal(few.indices[:, 0], many.indices[:, 0])


def test_chunks_do_not_show(
    make_sae: MakeSAE, make_tokens: MakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens read in pieces give what they give at once."""
    sae, x = make_sae(), make_tokens(50)
    whole = sae.top(x, k=6)
    monkeypatch.setattr(autoencoder, "CHUNK_ELEMENTS", 7 * sae.n_latents)
    assert_same(sae.top(x, k=6), whole)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches for the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):
                self.numel = max(self.numel, part.numel())
        return result


def test_wide_saes_are_read_in_bounded_memory(
    make_sae: MakeSAE, make_tokens: MakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor is larger than the bound, though tokens x latents is 20 times that."""
    bound = 1 << 16
    sae, x = make_sae(8, 4096), make_tokens(320)
    monkeypatch.setattr(autoencoder, "CHUNK_ELEMENTS", bound)
    with Largest() as watch:  # type: ignore[no-untyped-call]
        sae.top(x, k=4)
    assert 0 < watch.numel <= bound


def test_top_never_asks_the_device_for_a_value(make_sae: MakeSAE) -> None:
    """On the meta device, which holds no values, anything that waits for one would raise."""
    sae = make_sae(8, 4096).to("meta")
    top = sae.top(torch.empty(10, 8, device="meta"), k=6)
    assert top.indices.shape == (10, 6)
    assert top.fired.shape == (4096,)


def test_autocast_does_not_reach_the_sae(make_sae: MakeSAE, make_tokens: MakeTokens) -> None:
    """Under a trainer's bfloat16 autocast, codes and losses keep their float32 values."""
    sae, x = make_sae(), make_tokens(50)
    plain, code, reconstruction = sae.top(x, k=6), sae.encode(x), sae(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(sae.top(x, k=6), plain)
        assert torch.equal(sae.encode(x), code)
        assert torch.equal(sae(x), reconstruction)


def test_half_precision_residuals_are_read_as_float32(
    make_sae: MakeSAE, make_tokens: MakeTokens
) -> None:
    """Residuals in bfloat16 give what the same values give in float32."""
    sae, x = make_sae(), make_tokens(50).bfloat16()
    assert_same(sae.top(x, k=6), sae.top(x.float(), k=6))


def test_a_broken_token_does_not_spoil_the_others(
    make_sae: MakeSAE, make_tokens: MakeTokens
) -> None:
    """NaN in one residual shows in that token's loss, and nowhere else."""
    sae, x = make_sae(), make_tokens(20)
    clean = sae.top(x, k=6)
    x[3] = torch.nan
    got = sae.top(x, k=6)
    others = torch.arange(20) != 3
    assert got.reconstruction_loss.isnan().tolist() == [row == 3 for row in range(20)]
    assert torch.equal(got.activations[others], clean.activations[others])
    assert got.l0[3] == 0
    assert torch.equal(got.fired, sae.top(x[others], k=6).fired)


def test_top_records_no_gradient(make_sae: MakeSAE, make_tokens: MakeTokens) -> None:
    """Reading a residual that is being trained leaves its graph alone."""
    x = make_tokens(5).requires_grad_()
    assert not any(part.requires_grad for part in make_sae().top(x, k=2))


def test_encode_lets_gradients_through(make_sae: MakeSAE, make_tokens: MakeTokens) -> None:
    """Reconstructing is differentiable in the residual, as steering and patching need it."""
    x = make_tokens(5).requires_grad_()
    make_sae()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_an_sae_adds_nothing_to_the_model_that_holds_it(make_sae: MakeSAE) -> None:
    """No parameter to train or shard, no entry in the model's checkpoint."""
    model = torch.nn.Linear(2, 2)
    before = set(model.state_dict())
    model.sae = make_sae()
    assert set(model.state_dict()) == before
    assert len(list(model.parameters())) == 2


@pytest.mark.parametrize("k", [0, -1, 25])
def test_an_impossible_k_is_refused(make_sae: MakeSAE, make_tokens: MakeTokens, k: int) -> None:
    """The message names k and the number of latents."""
    with pytest.raises(ShapeError, match=rf"Expected k in 1\.\.24, got {k} .*24 latents"):
        make_sae().top(make_tokens(3), k=k)


@pytest.mark.parametrize("shape", [(3, 9), (2, 3, 8), (8,)])
def test_residuals_of_another_width_are_refused(make_sae: MakeSAE, shape: tuple[int, ...]) -> None:
    """The message names the shape that came, the width that was wanted, and the remedy."""
    sae, x = make_sae(), torch.zeros(shape)
    for read in (sae, sae.encode, lambda x: sae.top(x, k=1)):
        with pytest.raises(ShapeError, match=r"\(n, 8\), got \(.*d_model 8\. Flatten"):
            read(x)


def test_codes_of_another_width_are_refused(make_sae: MakeSAE) -> None:
    """`decode` names the shape that came and the number of latents."""
    with pytest.raises(ShapeError, match=r"\(n, 24\), got \(2, 23\).*24 latents"):
        make_sae().decode(torch.zeros(2, 23))


def test_an_sae_cast_to_half_precision_is_refused(
    make_sae: MakeSAE, make_tokens: MakeTokens
) -> None:
    """An SAE in another dtype says how to undo that, before it gives other latents."""
    sae = make_sae().to(torch.bfloat16)
    with pytest.raises(SAEFormatError, match=r"float32, got torch.bfloat16.*without a dtype"):
        sae.top(make_tokens(3), k=1)


def test_identity_tells_saes_apart(make_weights: MakeWeights) -> None:
    """Weights, architecture, k and options all show in the identity; equal SAEs have equal ones."""
    one, other = make_weights(seed=0), make_weights(seed=1)
    saes = [
        StandardSAE(one),
        StandardSAE(other),
        StandardSAE(one, apply_b_dec_to_input=False),
        StandardSAE(one, scale=2.0),
        TopKSAE(one, k=4),
        TopKSAE(one, k=5),
        TopKSAE(one, k=5, rescale_acts_by_decoder_norm=True),
    ]
    identities = [sae.identity() for sae in saes]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert StandardSAE(one).identity() == identities[0]
    assert identities[4] == {
        "architecture": "topk",
        "d_model": 8,
        "n_latents": 24,
        "dtype": "float32",
        "weights_sha256": identities[0]["weights_sha256"],
        "apply_b_dec_to_input": True,
        "k": 4,
        "rescale_acts_by_decoder_norm": False,
    }
