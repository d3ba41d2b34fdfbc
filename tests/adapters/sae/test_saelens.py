"""The on-disk format of SAELens, from files written here by hand as it publishes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_adapters.sae import (
    JumpReLUSAE,
    Origin,
    SparseAutoencoder,
    StandardSAE,
    TopKSAE,
    Weights,
    load_sae,
    save_sae,
)
from aegir_stream.errors import SAEFormatError

MakeSAE = Callable[..., SparseAutoencoder]
MakeTokens = Callable[..., torch.Tensor]
Tensors = dict[str, Any]
Edit = Callable[[dict[str, Any]], object]

D_MODEL, N_LATENTS = 8, 24


def published(architecture: str, **options: Any) -> dict[str, Any]:
    """Return a `cfg.json` as SAELens 6 writes it."""
    config = {
        "d_in": D_MODEL,
        "d_sae": N_LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": "6.54.12",
            "model_name": "tiny",
            "hook_name": "blocks.12.hook_resid_post",
            "prepend_bos": True,
            "context_size": 64,
        },
        "architecture": architecture,
    }
    return {**config, **options}


def published_tensors(*, threshold: bool = False) -> Tensors:
    """Return tensors by the names and shapes of SAELens."""
    rng = np.random.default_rng(3)
    shapes = {
        "W_enc": (D_MODEL, N_LATENTS),
        "b_enc": (N_LATENTS,),
        "W_dec": (N_LATENTS, D_MODEL),
        "b_dec": (D_MODEL,),
        **({"threshold": (N_LATENTS,)} if threshold else {}),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(directory: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Write a directory as it would be published."""
    (directory / "cfg.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, directory / "sae_weights.safetensors")
    return directory


def same_weights(sae: SparseAutoencoder, tensors: Tensors) -> bool:
    """Return whether an SAE holds exactly these tensors."""
    held = {"W_enc": sae.w_enc, "b_enc": sae.b_enc, "W_dec": sae.w_dec, "b_dec": sae.b_dec}
    return all(np.array_equal(held[name].numpy(), tensors[name]) for name in held)


def test_a_published_standard_sae_loads(tmp_path: Path) -> None:
    """Tensors, options, layer and source of a published SAE arrive as they are."""
    tensors = published_tensors()
    config = published("standard", apply_b_dec_to_input=False)
    sae = load_sae(write(tmp_path, config, tensors), repository="a/b", revision="c0ffee")
    assert isinstance(sae, StandardSAE)
    assert same_weights(sae, tensors)
    assert not sae.apply_b_dec_to_input
    assert sae.origin == Origin(
        layer=12,
        hook_name="blocks.12.hook_resid_post",
        model_name="tiny",
        repository="a/b",
        revision="c0ffee",
        path=str(tmp_path),
    )


@pytest.mark.parametrize("rescale", [True, False])
def test_a_published_topk_sae_loads(tmp_path: Path, *, rescale: bool) -> None:
    """`k` and the choice by contribution come from the configuration."""
    tensors = published_tensors()
    config = published("topk", k=7, rescale_acts_by_decoder_norm=rescale)
    sae = load_sae(write(tmp_path, config, tensors))
    assert isinstance(sae, TopKSAE)
    assert same_weights(sae, tensors)
    assert sae.options() == {
        "apply_b_dec_to_input": True,
        "k": 7,
        "rescale_acts_by_decoder_norm": rescale,
    }


def test_a_published_jumprelu_sae_loads(tmp_path: Path) -> None:
    """A JumpReLU SAE brings its thresholds."""
    tensors = published_tensors(threshold=True)
    sae = load_sae(write(tmp_path, published("jumprelu"), tensors))
    assert isinstance(sae, JumpReLUSAE)
    assert same_weights(sae, tensors)
    assert np.array_equal(sae.threshold.numpy(), tensors["threshold"])


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_either_file_stands_for_its_directory(tmp_path: Path, name: str) -> None:
    """The path of one of the two files does as well."""
    write(tmp_path, published("standard"), published_tensors())
    assert load_sae(tmp_path / name).identity() == load_sae(tmp_path).identity()


def test_a_missing_factor_can_be_given(tmp_path: Path, make_tokens: MakeTokens) -> None:
    """With `expected_average_only_in`, `scale` divides inputs and multiplies reconstructions."""
    tensors = published_tensors()
    normalised = published("standard", normalize_activations="expected_average_only_in")
    x = make_tokens(20)
    plain = load_sae(write(tmp_path, published("standard"), tensors))
    scaled = load_sae(write(tmp_path, normalised, tensors), scale=2.5)
    torch.testing.assert_close(scaled.encode(x), plain.encode(x / 2.5))
    torch.testing.assert_close(scaled(x), plain(x / 2.5) * 2.5)


def test_only_the_residual_stream_has_a_layer(tmp_path: Path) -> None:
    """A hook elsewhere in a block is kept by name, and is not taken for the block's output."""
    metadata = {"sae_lens_version": "6.0.0", "hook_name": "blocks.12.hook_mlp_out"}
    config = published("standard", metadata=metadata)
    origin = load_sae(write(tmp_path, config, published_tensors())).origin
    assert origin.layer is None
    assert origin.hook_name == "blocks.12.hook_mlp_out"


def test_half_precision_files_are_widened(tmp_path: Path, make_sae: MakeSAE) -> None:
    """Weights stored in bfloat16 are computed with in float32."""
    save_sae(make_sae(), tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    stored = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(stored, path)
    sae = load_sae(tmp_path)
    assert sae.w_enc.dtype == torch.float32
    assert torch.equal(sae.w_enc, stored["W_enc"].float())


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), n_latents=st.integers(1, 40), d_model=st.integers(1, 10))
def test_saving_and_loading_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory,
    make_sae: MakeSAE,
    make_tokens: MakeTokens,
    seed: int,
    n_latents: int,
    d_model: int,
) -> None:
    """What is loaded computes bit for bit what was saved, and has its identity."""
    sae, x = make_sae(d_model, n_latents, seed=seed), make_tokens(5, d_model, seed=seed)
    folder = tmp_path_factory.mktemp("sae")
    again = load_sae(save_sae(sae, folder))
    assert torch.equal(again(x), sae(x))
    assert again.identity() == {**sae.identity(), "path": str(folder)}


def test_a_folded_scale_survives(
    tmp_path: Path, make_weights: Callable[..., Weights], make_tokens: MakeTokens
) -> None:
    """The scale is part of the weights, so nothing has to be remembered beside the files."""
    sae = TopKSAE(make_weights(), k=4, scale=3.0)
    assert torch.equal(load_sae(save_sae(sae, tmp_path))(make_tokens(5)), sae(make_tokens(5)))


def test_what_is_known_of_the_origin_is_saved(
    tmp_path: Path, make_weights: Callable[..., Weights]
) -> None:
    """A layer becomes the hook name that SAELens gives it; repository and revision stay."""
    origin = Origin(layer=2, model_name="tiny", repository="a/b", revision="c0ffee")
    folder = save_sae(StandardSAE(make_weights(), origin=origin), tmp_path)
    again = load_sae(folder).origin
    assert again.hook_name == "blocks.2.hook_resid_post"
    assert (again.layer, again.model_name) == (2, "tiny")
    assert (again.repository, again.revision) == ("a/b", "c0ffee")


def test_the_files_are_those_of_saelens(
    tmp_path: Path, make_weights: Callable[..., Weights]
) -> None:
    """Keys, names, shapes and the version that marks the format are as SAELens 6 has them."""
    save_sae(TopKSAE(make_weights(), k=4), tmp_path / "new" / "folder")
    config = json.loads((tmp_path / "new/folder/cfg.json").read_text())
    tensors = safetensors.numpy.load_file(tmp_path / "new/folder/sae_weights.safetensors")
    expected = published("topk", k=4, rescale_acts_by_decoder_norm=False)
    assert config == {**expected, "metadata": {"sae_lens_version": "6.0.0"}}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in published_tensors().items()
    }
    assert {path.name for path in (tmp_path / "new/folder").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "temporal"}, r"`standard`, `topk`, .*`, got `temporal`"),
        ({"architecture": "gated"}, r"`W_dec`, `W_enc`, .*`b_gate`, .*got .*`b_gate`.* missing"),
        ({"architecture": "transcoder"}, r"got nothing - at `\$\.d_out`.*Add the width"),
        ({"architecture": "transcoder", "d_out": 8}, r"apply_b_dec_to_input=False.*it predicts"),
        ({"architecture": "transcoder", "d_out": 7}, r"`W_dec` of shape \(24, 7\), got \(24, 8\)"),
        ({"d_in": "8"}, r"Expected `int`, got `str` - at `\$\.d_in`"),
        (
            {"metadata": {}, "activation_fn_str": "tanh-relu"},
            r"`relu` or `topk`, got `tanh-relu` - at `\$\.activation_fn`",
        ),
        ({"metadata": {"sae_lens_version": "5.11.0"}, "d_sae": None}, r"at `\$\.d_sae`"),
        ({"architecture": "topk"}, r"got nothing - at `\$\.k`.*Add the `k`"),
        ({"architecture": "topk", "k": 25}, r"k in 1\.\.24, got 25"),
        (
            {"normalize_activations": "covariance_whitening"},
            r"`layer_norm`, got `covariance_whitening`.*not in its files",
        ),
        (
            {"normalize_activations": "expected_average_only_in"},
            r"needs a factor that is not in the file.*Pass scale=.* / x\.shape\[1\]\*\*0\.5",
        ),
        ({"reshape_activations": "hook_z"}, r"got `hook_z`.*residual stream"),
        ({"d_sae": 12}, r"`W_enc` of shape \(8, 12\), got \(8, 24\)"),
        ({"architecture": "jumprelu"}, r"and `threshold`, got `W_dec`.*`threshold` missing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_explained(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """The message names key, value, what is allowed, the file, and the remedy."""
    write(tmp_path, {**published("standard"), **change}, published_tensors())
    with pytest.raises(SAEFormatError, match=words) as caught:
        load_sae(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("key", ["architecture", "d_in", "d_sae"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    """Neither width nor architecture is guessed from the tensors."""
    config = published("standard")
    del config[key]
    write(tmp_path, config, published_tensors())
    with pytest.raises(SAEFormatError, match=f"missing required field `{key}`.*cfg.json"):
        load_sae(tmp_path)


def spoil(tensors: Tensors) -> None:
    """Put one NaN into the decoder."""
    tensors["W_dec"][3, 2] = np.nan


def overflow(tensors: Tensors) -> None:
    """Put infinities into the encoder bias."""
    tensors["b_enc"][:2] = np.inf


def transpose(tensors: Tensors) -> None:
    """Turn the encoder round, as other libraries keep it."""
    tensors["W_enc"] = np.ascontiguousarray(tensors["W_enc"].T)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda tensors: tensors.pop("b_enc"),
            r"got `W_dec`, `W_enc` and `b_dec` \(`b_enc` missing",
        ),
        (lambda tensors: tensors.update(W_skip=tensors["W_enc"]), r"`W_skip` unknown"),
        (spoil, r"finite values in `W_dec`, got 1 of 192 that are NaN"),
        (overflow, r"finite values in `b_enc`, got 2 of 24"),
        (transpose, r"`W_enc` of shape \(8, 24\), got \(24, 8\).*This one is transposed"),
    ],
)
def test_tensors_that_do_not_fit_are_explained(tmp_path: Path, edit: Edit, words: str) -> None:
    """The message names tensor, shape or count, the file, and the remedy."""
    tensors = published_tensors()
    edit(tensors)
    write(tmp_path, published("standard"), tensors)
    with pytest.raises(SAEFormatError, match=words) as caught:
        load_sae(tmp_path)
    assert "sae_weights.safetensors" in str(caught.value)
    assert caught.value.hint


def test_a_needless_scale_is_refused(tmp_path: Path) -> None:
    """Scaling an SAE that fits its activations would silently break it."""
    write(tmp_path, published("standard"), published_tensors())
    with pytest.raises(SAEFormatError, match=r"no `scale` .* got 2\.0.*Leave `scale` out"):
        load_sae(tmp_path, scale=2.0)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """Weights alone are refused: their orientation could not be told."""
    write(tmp_path, published("standard"), published_tensors())
    (tmp_path / name).unlink()
    with pytest.raises(SAEFormatError, match=f"got no {name} - in .*orientation"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    """A file cut short is an error of the format, with the file's name."""
    write(tmp_path, published("standard"), published_tensors())
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SAEFormatError, match=name):
        load_sae(tmp_path)
