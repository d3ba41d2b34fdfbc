"""Llama Scope and Llama Scope R1, by what their authors' code computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.sae.formulas import Published, assert_same
from adapters.sae.published import llama_scope, llama_scope_r1
from aegir_adapters.sae import JumpReLUSAE, Origin, load_sae
from aegir_stream.errors import SAEFormatError

MLP: dict[str, Any] = {
    "hook_point_in": "blocks.5.ln2.hook_normalized",
    "hook_point_out": "blocks.5.hook_mlp_out",
    "dataset_average_activation_norm": {"in": 3.25, "out": 0.5},
}


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("write", [llama_scope, llama_scope_r1])
def test_norms_of_inputs_and_decoders_are_folded(
    tmp_path: Path, write: Any, *, include: bool, unit_norm: bool
) -> None:
    """The threshold is compared with what the authors compare it with."""
    published: Published = write(
        tmp_path, unit_norm=unit_norm, sparsity_include_decoder_norm=include
    )
    sae = load_sae(published.path)
    assert isinstance(sae, JumpReLUSAE)
    assert_same(sae, published)


@pytest.mark.parametrize("include", [True, False])
def test_a_transcoder_has_a_norm_for_each_side(tmp_path: Path, *, include: bool) -> None:
    """What goes into an MLP is some times as large as what comes out of it."""
    published = llama_scope(tmp_path, place="TC", sparsity_include_decoder_norm=include, **MLP)
    sae = load_sae(published.path)
    assert sae.architecture == "jumprelu_transcoder"
    assert_same(sae, published)
    assert sae.origin.layer is None
    assert sae.origin.hook_name_out == "blocks.5.hook_mlp_out"


def test_norms_that_were_folded_before_are_not_folded_again(tmp_path: Path) -> None:
    """In `inference` the weights fit residuals as they are."""
    published = llama_scope(tmp_path, norm_activation="inference")
    assert_same(load_sae(published.path), published)


def test_the_threshold_stands_for_the_k_largest(tmp_path: Path) -> None:
    """Where the activation is still called `topk`, the authors put the threshold in its place."""
    published = llama_scope(tmp_path, act_fn="topk")
    assert_same(load_sae(published.path), published)


def test_a_decoder_row_of_zeros_stays_one(tmp_path: Path) -> None:
    """A latent that stands for nothing has no norm to divide by."""
    file = llama_scope(tmp_path).path / "checkpoints" / "final.safetensors"
    held = load_file(file)
    held["decoder.weight"][:, 3] = 0
    save_file(held, file)
    sae = load_sae(file.parent.parent)
    assert not sae.w_dec[3].any()
    assert sae.w_enc.isfinite().all()


def test_both_say_where_they_came_from(tmp_path: Path) -> None:
    """The place stands in the configuration."""
    first, second = llama_scope(tmp_path).path, llama_scope_r1(tmp_path).path
    model = "meta-llama/Llama-3.1-8B"
    assert load_sae(first).origin == Origin(
        layer=5,
        hook_name="blocks.5.hook_resid_post",
        path=str(first / "checkpoints" / "final.safetensors"),
        model_name=model,
    )
    assert load_sae(second).origin == Origin(
        layer=15,
        hook_name="blocks.15.hook_resid_post",
        path=str(second / "sae_weights.safetensors"),
        model_name=model,
    )
    mlp = llama_scope(tmp_path, layer=6, place="M", hook_point_in="blocks.6.hook_mlp_out")
    assert load_sae(mlp.path, layer=6).origin.layer is None


@pytest.mark.parametrize("write", [llama_scope, llama_scope_r1])
def test_a_layer_of_the_repository_is_chosen(tmp_path: Path, write: Any) -> None:
    """The folder of a layer bears its number, and the hint names what can be named."""
    wanted: Published = write(tmp_path, layer=5)
    write(tmp_path, layer=12)
    root = wanted.path.parent
    assert_same(load_sae(root, layer=5), wanted)
    with pytest.raises(SAEFormatError, match=r"got 2: .*Pass layer=") as refusal:
        load_sae(root)
    named = str(refusal.value).partition("load_sae('")[2].partition("'")[0]
    assert load_sae(named).origin.layer in {5, 12}
    with pytest.raises(SAEFormatError, match="of layer 7, got"):
        load_sae(root, layer=7)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"act_fn": "relu"}, r"`jumprelu` or `topk`, got `relu` - at `\$\.act_fn`"),
        (
            {"act_fn": "topk", "jump_relu_threshold": 0.0},
            r"positive threshold for `topk`, got 0\.0 - at `\$\.jump_relu_threshold`",
        ),
        ({"norm_activation": "token-wise"}, r"`none`, got `token-wise` - at `\$\.norm_activation`"),
        ({"use_glu_encoder": True}, r"`False`, got `True` - at `\$\.use_glu_encoder`"),
        ({"d_model": 13}, r"`encoder\.weight` of shape \(64, 13\), got \(64, 12\)"),
        (
            {"dataset_average_activation_norm": {"in": 0.0, "out": 1.0}},
            r"mean norm as a positive number, got 0\.0 - at `in`",
        ),
        (
            {"dataset_average_activation_norm": None},
            r"mean norm as a positive number, got None - at `in`",
        ),
    ],
)
def test_the_first_is_refused_where_it_is_not_built(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    """What the configuration says stands beside what is read."""
    folder = llama_scope(tmp_path).path
    (folder / "hyperparams.json").write_text(_edited(folder / "hyperparams.json", config))
    with pytest.raises(SAEFormatError, match=words):
        load_sae(folder)


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, {}, r"got `blocks\.15\.hook_mlp_out`"),
        (
            {"hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": None},
            {},
            r"mean norm .*, got None - at `dataset_average_activation_norm\.blocks\.3",
        ),
        ({}, {"encoder_glu.weight": torch.ones(3)}, r"`encoder_glu\.weight` unknown"),
        (
            {},
            {"log_jumprelu_threshold": torch.ones(3)},
            r"`log_jumprelu_threshold` of shape \(48,\), got \(3,\)",
        ),
    ],
)
def test_the_second_is_refused_where_it_is_not_built(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], words: str
) -> None:
    """What the configuration says stands beside what is there."""
    folder = llama_scope_r1(tmp_path, tensors=tensors).path
    (folder / "config.json").write_text(_edited(folder / "config.json", config))
    with pytest.raises(SAEFormatError, match=words):
        load_sae(folder)


def _edited(path: Path, changes: dict[str, Any]) -> str:
    return json.dumps({**json.loads(path.read_text()), **changes})
