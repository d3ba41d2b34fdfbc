"""Sparse coders of EleutherAI's sparsify, by its own formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapters.sae.formulas import assert_close, assert_same, largest_of_groups
from adapters.sae.published import sparsify
from aegir_adapters.sae import GroupMaxSAE, TopKSAE, Weights, load_sae
from aegir_stream.errors import SAEFormatError, ShapeError


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"normalize_decoder": False},
        {"transcode": True},
        {"transcode": True, "skip_connection": True},
        {"multi_topk": True, "linear": True},
    ],
)
def test_a_coder_computes_what_sparsify_does(
    tmp_path: Path, activation: str, config: dict[str, Any]
) -> None:
    """`b_dec` is subtracted unless it transcodes, whatever was done to the decoder in training."""
    published = sparsify(tmp_path, activation=activation, **config)
    sae = load_sae(published.path)
    assert isinstance(sae, GroupMaxSAE if activation == "groupmax" else TopKSAE)
    assert sae.is_transcoder == config.get("transcode", False)
    assert sae.identity()["k"] == 4
    assert_same(sae, published)


def test_configurations_of_the_first_versions_are_read(tmp_path: Path) -> None:
    """Without the later keys a coder is a TopK autoencoder with a multiple of the width."""
    folder = sparsify(tmp_path).path
    config = {"expansion_factor": 4, "num_latents": 0, "k": 4, "signed": False, "d_in": 12}
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SAEFormatError, match=r"`W_dec` of shape \(48, 12\), got \(64, 12\)"):
        load_sae(folder)
    held = load_file(folder / "sae.safetensors")
    short = {name: tensor if name == "b_dec" else tensor[:48] for name, tensor in held.items()}
    save_file(short, folder / "sae.safetensors")
    assert load_sae(folder).n_latents == 48


@pytest.mark.parametrize(
    ("module", "layer", "hook"),
    [
        ("layers.3", 3, "blocks.3.hook_resid_post"),
        ("h.11", 11, "blocks.11.hook_resid_post"),
        ("model.layers.3", 3, "blocks.3.hook_resid_post"),
        ("layers.3.mlp", None, "layers.3.mlp"),
        ("embed_tokens", None, "embed_tokens"),
    ],
)
def test_the_folder_names_the_module_that_was_read(
    tmp_path: Path, module: str, layer: int | None, hook: str
) -> None:
    """Only a whole layer's output is its residual stream."""
    published = sparsify(tmp_path, module=module)
    origin = load_sae(published.path).origin
    assert (origin.layer, origin.hook_name) == (layer, hook)


def test_a_transcoder_names_both_places(tmp_path: Path) -> None:
    """It reads what goes into its module and predicts what comes out of it."""
    origin = load_sae(sparsify(tmp_path, module="layers.3.mlp", transcode=True).path).origin
    assert origin.layer is None
    assert (origin.hook_name, origin.hook_name_out) == ("layers.3.mlp.input", "layers.3.mlp.output")


def test_a_layer_of_a_whole_training_is_chosen(tmp_path: Path) -> None:
    """The folder of a training holds one coder for each module, and names the model."""
    wanted = sparsify(tmp_path)
    sparsify(tmp_path, module="layers.4")
    sparsify(tmp_path, module="layers.4.mlp")
    root = wanted.path.parent
    (root / "config.json").write_text(json.dumps({"model": "meta-llama/Meta-Llama-3-8B"}))
    sae = load_sae(root, layer=3)
    assert_same(sae, wanted)
    assert sae.origin.model_name == "meta-llama/Meta-Llama-3-8B"
    with pytest.raises(SAEFormatError, match=r"got 2: `layers\.4\.mlp/.*`layers\.4/"):
        load_sae(root, layer=4)
    with pytest.raises(SAEFormatError, match="got 3: "):
        load_sae(root)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"signed": True}, r"Expected false, got true - at `\$\.signed`"),
        ({"skip_connection": True}, r"a transcoder where there is a skip.*got an autoencoder"),
        ({"activation": "relu"}, r"Invalid enum value 'relu' - at `\$\.activation`"),
        ({"k": 65}, r"Expected k in 1\.\.64, got 65 .*sae\.safetensors"),
        ({"activation": "groupmax", "k": 7}, r"fall into 7 groups of one size, got 64"),
        ({"d_in": 13}, r"`W_dec` of shape \(64, 13\), got \(64, 12\)"),
        ({"num_latents": 12}, r"`W_dec` of shape \(12, 12\), got \(64, 12\)"),
        ({"d_in": None}, r"Expected `int`, got `null` - at `\$\.d_in`"),
    ],
)
def test_what_is_not_built_or_does_not_fit_is_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    """What the configuration says stands beside what is there."""
    folder = sparsify(tmp_path).path
    described = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**described, **config}))
    with pytest.raises(SAEFormatError, match=words):
        load_sae(folder)


def test_a_skip_connection_that_is_missing_is_refused(tmp_path: Path) -> None:
    """A transcoder with a skip connection computes something else without it."""
    folder = sparsify(tmp_path, transcode=True, skip_connection=True).path
    held = load_file(folder / "sae.safetensors")
    del held["W_skip"]
    save_file(held, folder / "sae.safetensors")
    with pytest.raises(SAEFormatError, match=r"`W_skip` missing"):
        load_sae(folder)
    (folder / "sae.safetensors").write_bytes(b"damaged")
    with pytest.raises(SAEFormatError, match="Expected safetensors, got"):
        load_sae(folder)


@given(k=st.integers(1, 6), size=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_groupmax_keeps_the_largest_of_each_group(k: int, size: int, seed: int) -> None:
    """Of each group of neighbours the largest is kept, and of those the positive ones."""
    draws = torch.Generator().manual_seed(seed)
    n = k * size
    shapes = ((4, n), (n,), (n, 4), (4,))
    weights = Weights(*(torch.randn(shape, generator=draws) for shape in shapes))
    x = torch.randn(5, 4, generator=draws)
    sae = GroupMaxSAE(weights, k=k, apply_b_dec_to_input=False)
    expected = largest_of_groups(k)(x.double() @ weights.w_enc.double() + weights.b_enc.double())
    assert_close(sae.encode(x), expected)
    top = sae.top(x, k=n)
    assert_close(top.activations, expected.sort(1, descending=True).values)
    assert torch.equal(top.l0, (expected > 0).sum(1, dtype=torch.int32))


def test_groups_are_of_one_size() -> None:
    """Latents that do not fall into k groups are refused."""
    weights = Weights(torch.zeros(4, 7), torch.zeros(7), torch.zeros(7, 4), torch.zeros(4))
    with pytest.raises(ShapeError, match="3 groups of one size, got 7"):
        GroupMaxSAE(weights, k=3)
