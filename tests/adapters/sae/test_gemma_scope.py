"""Gemma Scope, the first and the second: JumpReLU SAEs whose names say what they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from adapters.sae.formulas import N, assert_same, draw
from adapters.sae.published import gemma_scope, gemma_scope_2
from aegir_adapters.sae import JumpReLUSAE, load_sae
from aegir_stream.errors import SAEFormatError

TRANSCODER: dict[str, Any] = {
    "place": "transcoder_all",
    "hook": "model.layers.17.pre_feedforward_layernorm.output",
    "type": "transcoder",
}


@pytest.mark.parametrize("prefix", ["w", "W"])
def test_the_first_computes_a_jumprelu_on_the_input_as_it_is(tmp_path: Path, prefix: str) -> None:
    """Names of either case are read, and nothing is subtracted from the input."""
    published = gemma_scope(tmp_path, prefix=prefix)
    sae = load_sae(published.path)
    assert isinstance(sae, JumpReLUSAE)
    assert_same(sae, published)
    assert sae.origin.layer == 20
    assert sae.origin.hook_name == "blocks.20.hook_resid_post"
    assert sae.origin.model_name == "google/gemma-2-2b"
    assert sae.origin.path == str(published.path / "params.npz")


def test_an_sae_of_embeddings_reads_them_as_the_first_layer_does(tmp_path: Path) -> None:
    """They were trained before Gemma multiplies embeddings by sqrt(d), which is folded in."""
    published = gemma_scope(tmp_path, folder="embedding/width_4k/average_l0_6")
    sae = load_sae(published.path)
    assert_same(sae, published)
    assert (sae.origin.layer, sae.origin.hook_name) == (None, "hook_embed")


@pytest.mark.parametrize(
    ("repository", "hook", "model"),
    [
        ("gemma-scope-9b-pt-mlp", "blocks.20.hook_mlp_out", "google/gemma-2-9b"),
        ("gemma-scope-9b-pt-att", "blocks.20.attn.hook_z", "google/gemma-2-9b"),
        ("gemma-scope-9b-it-res", "blocks.20.hook_resid_post", "google/gemma-2-9b-it"),
        ("downloads", None, None),
    ],
)
def test_only_the_name_says_what_the_first_reads(
    tmp_path: Path, repository: str, hook: str | None, model: str | None
) -> None:
    """An SAE is one of a residual stream where its repository says so, and nowhere else."""
    origin = load_sae(gemma_scope(tmp_path, repository=repository).path).origin
    assert (origin.hook_name, origin.model_name) == (hook, model)
    assert origin.layer == (20 if hook and "resid_post" in hook else None)


def test_the_firsts_transcoders_predict_the_output_of_the_mlp(tmp_path: Path) -> None:
    """Only the name of the repository tells a transcoder from an SAE."""
    published = gemma_scope(tmp_path, repository="gemma-scope-2b-pt-transcoders")
    sae = load_sae(published.path)
    assert sae.architecture == "jumprelu_transcoder"
    assert_same(sae, published)
    assert sae.origin.hook_name == "blocks.20.ln2.hook_normalized"
    assert sae.origin.hook_name_out == "blocks.20.hook_mlp_out"
    assert sae.origin.layer is None


def test_one_of_many_widths_is_chosen_by_its_folder(tmp_path: Path) -> None:
    """A layer alone does not do where there are several SAEs for it; its folder does."""
    wanted = gemma_scope(tmp_path)
    other = gemma_scope(tmp_path, folder="layer_20/width_65k/average_l0_61", seed=40)
    gemma_scope(tmp_path, folder="layer_1/width_16k/average_l0_71", seed=50)
    root = tmp_path / "gemma-scope-2b-pt-res"
    with pytest.raises(SAEFormatError, match=r"got 2: .*width_16k/.*width_65k/.*Name one of these"):
        load_sae(root, layer=20)
    with pytest.raises(SAEFormatError, match=r"got 3: .*Pass layer="):
        load_sae(root)
    assert_same(load_sae(wanted.path, layer=20), wanted)
    assert_same(load_sae(other.path / "params.npz"), other)
    assert load_sae(root, layer=1).origin.layer == 1


def test_arrays_of_objects_are_not_loaded(tmp_path: Path) -> None:
    """An npz may hold pickles; they are refused."""
    file = gemma_scope(tmp_path).path / "params.npz"
    np.savez(file, W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(SAEFormatError, match=r"Expected arrays of numbers, got .*allow_pickle"):
        load_sae(file)
    file.write_bytes(b"damaged")
    with pytest.raises(SAEFormatError, match="Expected arrays of numbers, got"):
        load_sae(file)


def test_a_threshold_of_another_length_is_refused(tmp_path: Path) -> None:
    """Each latent has its own threshold."""
    file = gemma_scope(tmp_path).path / "params.npz"
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "threshold": arrays["threshold"][:-1]})
    with pytest.raises(SAEFormatError, match=r"`threshold` of shape \(64,\), got \(63,\)"):
        load_sae(file)
    np.savez(file, **{**arrays, "W_enc": arrays["W_enc"].T})
    with pytest.raises(
        SAEFormatError, match=r"`w_enc` of shape \(12, 64\), got \(64, 12\).*transp"
    ):
        load_sae(file)


@pytest.mark.parametrize("hook", ["model.layers.17.output", None])
def test_the_second_is_described_by_its_configuration_or_its_folder(
    tmp_path: Path, hook: str | None
) -> None:
    """Some folders lack the configuration; their names say the same."""
    published = gemma_scope_2(tmp_path, hook=hook)
    sae = load_sae(published.path)
    assert_same(sae, published)
    assert sae.architecture == "jumprelu"
    assert (sae.origin.layer, sae.origin.hook_name) == (17, "blocks.17.hook_resid_post")
    assert sae.origin.model_name == "google/gemma-3-4b-pt"


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_the_seconds_transcoders_may_have_a_skip_connection(
    tmp_path: Path, *, skip: bool, described: bool
) -> None:
    """The skip connection multiplies the input from the right."""
    name = f"layer_17_width_16k_l0_small{'_affine' if skip else ''}"
    options = TRANSCODER if described else {**TRANSCODER, "hook": None}
    published = gemma_scope_2(tmp_path, name=name, skip=skip, **options)
    sae = load_sae(published.path)
    assert sae.architecture == ("jumprelu_skip_transcoder" if skip else "jumprelu_transcoder")
    assert_same(sae, published)
    assert sae.origin.hook_name == "blocks.17.hook_mlp_in"
    assert sae.origin.hook_name_out == "blocks.17.hook_mlp_out"
    assert sae.origin.layer is None


@pytest.mark.parametrize(
    ("place", "inside", "hook"),
    [
        ("attn_out_all", "self_attn.o_proj.input", "blocks.17.attn.hook_z"),
        ("mlp_out", "post_feedforward_layernorm.output", "blocks.17.hook_mlp_out"),
    ],
)
def test_places_inside_a_layer_are_named(
    tmp_path: Path, place: str, inside: str, hook: str
) -> None:
    """What is inside a layer is not taken for its output."""
    described = gemma_scope_2(tmp_path / "a", place=place, hook=f"model.layers.17.{inside}")
    bare = gemma_scope_2(tmp_path / "b", place=place, hook=None)
    for published in (described, bare):
        origin = load_sae(published.path).origin
        assert (origin.layer, origin.hook_name) == (None, hook)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "crosscoder"}, r"type `sae` or `transcoder`, got `jump_relu` and `crosscoder`"),
        ({"architecture": "topk"}, r"architecture `jump_relu`.*, got `topk`"),
        (
            {"hook": "model.embed_tokens.output"},
            r"`model\.layers\.17\.output`, got `model\.embed_tokens\.output`",
        ),
        ({"affine_connection": True}, r"got .*\(`affine_skip_connection` missing\)"),
        ({"affine_connection": "yes"}, r"Expected `bool`, got `str` - at `\$\.affine_connection`"),
    ],
)
def test_a_second_that_is_not_built_is_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    """What the configuration asks for stands beside what is read."""
    folder = gemma_scope_2(tmp_path, **config).path
    with pytest.raises(SAEFormatError, match=words):
        load_sae(folder)


def test_a_skip_connection_that_nothing_announces_is_refused(tmp_path: Path) -> None:
    """A tensor that the configuration denies would be left out of what is computed."""
    folder = gemma_scope_2(tmp_path, skip=True, affine_connection=False, **TRANSCODER).path
    with pytest.raises(SAEFormatError, match=r"\(`affine_skip_connection` unknown\)"):
        load_sae(folder)


def test_a_second_without_any_description_is_refused(tmp_path: Path) -> None:
    """Neither the configuration nor the folder says whether it is a transcoder."""
    folder = gemma_scope_2(tmp_path, hook=None).path
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(SAEFormatError, match=r"a place such as .*, got `None`.*keep the folders"):
        load_sae(moved)


def test_a_cross_layer_transcoder_is_refused(tmp_path: Path) -> None:
    """Its decoder has a matrix for each later layer."""
    folder = gemma_scope_2(tmp_path, **TRANSCODER).path
    held = load_file(folder / "params.safetensors")
    save_file({**held, "w_dec": draw(N, 3, 12, seed=1)}, folder / "params.safetensors")
    with pytest.raises(SAEFormatError, match=r"`w_dec` of shape \(64, 12\), got \(64, 3, 12\)"):
        load_sae(folder)


def test_the_configuration_stands_for_its_folder(tmp_path: Path) -> None:
    """Naming either file of a folder names the SAE in it."""
    published = gemma_scope_2(tmp_path)
    for name in ("config.json", "params.safetensors"):
        assert_same(load_sae(published.path / name, layer=17), published)
    assert json.loads((published.path / "config.json").read_text())["l0"] == 20
