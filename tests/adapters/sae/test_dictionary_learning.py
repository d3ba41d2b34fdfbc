"""Dictionaries of the library dictionary_learning, by what their classes compute at inference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.sae.formulas import K, assert_same, draw
from adapters.sae.published import dictionary_learning
from aegir_adapters.sae import Origin, load_sae
from aegir_stream.errors import SAEFormatError

ARCHITECTURES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
    "GatedAutoEncoder": "gated",
}


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("dict_class", ARCHITECTURES)
def test_each_class_computes_what_the_library_does(
    tmp_path: Path, dict_class: str, *, unit_norm: bool
) -> None:
    """The decoder of an `AutoEncoder` is brought to norm 1, as `from_pretrained` does."""
    published = dictionary_learning(tmp_path, dict_class, unit_norm=unit_norm)
    sae = load_sae(published.path)
    assert sae.architecture == ARCHITECTURES[dict_class]
    assert_same(sae, published)


def test_a_decoder_row_of_zeros_stays_one(tmp_path: Path) -> None:
    """A latent that stands for nothing has no norm to be brought to 1."""
    folder = dictionary_learning(tmp_path, "AutoEncoder", unit_norm=False).path
    held = torch.load(folder / "ae.pt")
    held["decoder.weight"][:, 3] = 0
    torch.save(held, folder / "ae.pt")
    sae = load_sae(folder)
    assert not sae.w_dec[3].any()
    assert sae.w_enc.isfinite().all()


def test_its_origin_is_that_of_its_training(tmp_path: Path) -> None:
    """Layer, place and model stand in the configuration."""
    folder = dictionary_learning(tmp_path, "AutoEncoder").path
    assert load_sae(folder, layer=8).origin == Origin(
        layer=8,
        hook_name="blocks.8.hook_resid_post",
        model_name="EleutherAI/pythia-70m-deduped",
        path=str(folder / "ae.pt"),
    )


@pytest.mark.parametrize(
    ("named", "layer", "hook"),
    [
        (None, 8, "blocks.8.hook_resid_post"),
        ("mlp_out_layer_8", None, "mlp_out_layer_8"),
    ],
)
def test_only_its_own_words_make_it_one_of_a_residual_stream(
    tmp_path: Path, named: str | None, layer: int | None, hook: str
) -> None:
    """Where the configuration does not name the place, the folder may."""
    folder = dictionary_learning(tmp_path, "AutoEncoder", submodule_name=named).path
    origin = load_sae(folder).origin
    assert (origin.layer, origin.hook_name) == (layer, hook)
    moved = folder.rename(tmp_path / "moved")
    assert load_sae(moved).origin.layer is None


def test_one_of_several_trainers_is_chosen_by_its_folder(tmp_path: Path) -> None:
    """A sweep holds several dictionaries for a layer."""
    wanted = dictionary_learning(tmp_path, "AutoEncoderTopK")
    copy = wanted.path.with_name("trainer_1")
    copy.mkdir()
    for file in wanted.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SAEFormatError, match=r"got 2: .*trainer_0/ae\.pt`, `.*trainer_1/ae\.pt"):
        load_sae(tmp_path, layer=8)
    assert_same(load_sae(wanted.path), wanted)


def test_k_may_stand_in_either_file_but_not_twice_differently(tmp_path: Path) -> None:
    """The library refuses a `k` that contradicts the one in the file too."""
    folder = dictionary_learning(tmp_path / "a", "AutoEncoderTopK", k=None).path
    assert load_sae(folder).identity()["k"] == K
    folder = dictionary_learning(tmp_path / "b", "AutoEncoderTopK", k=7).path
    with pytest.raises(SAEFormatError, match=r"Expected one `k`, got 5 and 7 - at `k` .*ae\.pt"):
        load_sae(folder)
    held = torch.load(folder / "ae.pt")
    del held["k"], held["threshold"]
    torch.save(held, folder / "ae.pt")
    assert load_sae(folder).identity()["k"] == 7
    config = json.loads((folder / "config.json").read_text())
    del config["trainer"]["k"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SAEFormatError, match="Expected one `k`, got nothing"):
        load_sae(folder)


@pytest.mark.parametrize("dict_class", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_set_is_refused(tmp_path: Path, dict_class: str) -> None:
    """Without it such an SAE would pass every positive latent, a hundred times too many."""
    folder = dictionary_learning(tmp_path, dict_class, threshold=-1.0).path
    with pytest.raises(SAEFormatError, match=r"threshold of 0 or more, got -1 .*never set"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("dict_class", "trainer", "words"),
    [
        ("AutoEncoder", {"dict_class": "IdentityDict"}, r"`AutoEncoder`.*, got `IdentityDict`"),
        (
            "AutoEncoder",
            {"activation_dim": 13},
            r"`encoder\.weight` of shape \(64, 13\), got \(64, 12\)",
        ),
        ("JumpReluAutoEncoder", {"dict_size": 12}, r"`W_enc` of shape \(12, 12\), got \(12, 64\)"),
        ("AutoEncoder", {"dict_class": "AutoEncoderTopK"}, r"`b_dec` missing, `bias` unknown"),
        (
            "AutoEncoder",
            {"dict_size": "64"},
            r"Expected `int`, got `str` - at `\$\.trainer\.dict_s",
        ),
    ],
)
def test_what_is_not_built_or_does_not_fit_is_refused(
    tmp_path: Path, dict_class: str, trainer: dict[str, Any], words: str
) -> None:
    """What the configuration says stands beside what is there."""
    folder = dictionary_learning(tmp_path, dict_class).path
    config = json.loads((folder / "config.json").read_text())
    config["trainer"].update(trainer)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SAEFormatError, match=words):
        load_sae(folder)


def test_a_threshold_for_each_latent_is_one_of_the_format_too(tmp_path: Path) -> None:
    """A BatchTopK SAE may hold a threshold for each latent instead of one for all."""
    each = torch.full((64,), 0.7)
    published = dictionary_learning(tmp_path, "BatchTopKSAE", tensors={"threshold": each})
    assert_same(load_sae(published.path), published)
    torch.save(
        {**torch.load(published.path / "ae.pt"), "threshold": draw(9, seed=1)},
        published.path / "ae.pt",
    )
    with pytest.raises(SAEFormatError, match=r"`threshold` of shape \(64,\), got \(9,\)"):
        load_sae(published.path)
