"""Which SAE `load_sae` takes out of what it is given, and what it refuses to guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aegir_adapters.sae import JumpReLUSAE, StandardSAE, Weights, load_sae
from aegir_adapters.sae.families import layer_in
from aegir_adapters.sae.files import open_files
from aegir_stream.errors import SAEFormatError

D_IN, D_SAE = 4, 6


def publish(folder: Path, hook: str | None = None, *, seed: int = 0, **options: Any) -> Path:
    """Write one SAE as SAELens publishes it."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": hook},
        **options,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def layers(root: Path, *numbers: int, place: str = "hook_resid_post") -> Path:
    """Write one SAE for each of several layers, in folders named as their hooks."""
    for number in numbers:
        hook = f"blocks.{number}.{place}"
        publish(root / hook, hook, seed=number)
    return root


def test_a_layer_is_chosen_among_many(tmp_path: Path) -> None:
    """The layer that is asked for, and no neighbour of it."""
    layers(tmp_path, 1, 2, 12)
    sae = load_sae(tmp_path, layer=2)
    alone = load_sae(tmp_path / "blocks.2.hook_resid_post")
    assert sae.origin.layer == 2
    assert sae.identity() == alone.identity()


def test_many_layers_and_none_chosen_are_named(tmp_path: Path) -> None:
    """None is taken for want of a choice; the message shows what there is and how to choose."""
    layers(tmp_path, 1, 2)
    with pytest.raises(SAEFormatError, match=r"one SAE, got 2: .*blocks\.1\..*blocks\.2\..*layer="):
        load_sae(tmp_path)


def test_a_layer_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    """Neither the nearest nor the only one is taken instead."""
    layers(tmp_path, 1, 2)
    with pytest.raises(SAEFormatError, match=r"SAE of layer 7, got .*blocks\.1\..*blocks\.2\."):
        load_sae(tmp_path, layer=7)
    with pytest.raises(SAEFormatError, match=r"SAE of layer 7, got .*sae_weights"):
        load_sae(tmp_path / "blocks.1.hook_resid_post", layer=7)


def test_what_a_block_reads_belongs_to_the_layer_before_it(tmp_path: Path) -> None:
    """`blocks.2.hook_resid_pre` is the output of layer 1, and is found as that."""
    layers(tmp_path, 1, 2, 3, place="hook_resid_pre")
    sae = load_sae(tmp_path, layer=1)
    assert (sae.origin.layer, sae.origin.hook_name) == (1, "blocks.2.hook_resid_pre")
    publish(tmp_path / "first", "blocks.0.hook_resid_pre")
    assert load_sae(tmp_path / "first").origin.layer is None


def test_two_saes_of_one_layer_are_named(tmp_path: Path) -> None:
    """Two widths of one layer cannot be told apart by the layer."""
    for width in ("16k", "32k"):
        publish(tmp_path / f"layer_3/width_{width}", "blocks.3.hook_resid_post")
    with pytest.raises(SAEFormatError, match=r"got 2: .*width_16k.*width_32k.*Name one of these"):
        load_sae(tmp_path, layer=3)


def test_a_folder_whose_name_says_nothing_is_known_by_its_configuration(tmp_path: Path) -> None:
    """Names are a shortcut; the hook in the configuration decides."""
    publish(tmp_path / "a", "blocks.4.hook_resid_post")
    publish(tmp_path / "b", "blocks.5.hook_resid_post", seed=5)
    assert load_sae(tmp_path, layer=5).origin.path == str(tmp_path / "b")


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_file_stands_for_the_sae_that_it_belongs_to(tmp_path: Path, name: str) -> None:
    """Folders below it, and other weights beside it, are not looked at."""
    publish(tmp_path, "blocks.1.hook_resid_post")
    layers(tmp_path, 2, 3)
    assert load_sae(tmp_path / name).origin.layer == 1


def test_only_the_named_weights_are_seen(tmp_path: Path) -> None:
    """Beside a file of tensors stay the files that describe it; a description keeps them all."""
    for name in ("layer0.sae.pt", "layer1.sae.pt", "cfg.json", ".hidden.json"):
        (tmp_path / name).touch()
    (tmp_path / ".cache/below").mkdir(parents=True)
    (tmp_path / ".cache/below/layer2.sae.pt").touch()
    assert open_files(tmp_path).names == ("cfg.json", "layer0.sae.pt", "layer1.sae.pt")
    assert open_files(tmp_path / "layer1.sae.pt").names == ("cfg.json", "layer1.sae.pt")
    assert len(open_files(tmp_path / "cfg.json").names) == 3


def test_files_of_two_formats_are_not_chosen_between(tmp_path: Path) -> None:
    """Both formats are named with their files."""
    publish(tmp_path)
    torch.save({}, tmp_path / "layer3.sae.pt")
    with pytest.raises(
        SAEFormatError, match=r"one format, got `saelens: sae_weights.*: layer3\.sae\.pt`"
    ):
        load_sae(tmp_path)


def test_a_folder_without_an_sae_is_described(tmp_path: Path) -> None:
    """The message says what was found, and which formats are known."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SAEFormatError, match=r"known format, got `config\.json`, .*`saelens`"):
        load_sae(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(SAEFormatError, match=r"known format, got no files - in .*empty"):
        load_sae(empty)


@pytest.mark.parametrize("source", ["/nowhere/sae", "./sae", "sae", "~/no/such/sae", "a/../b"])
def test_what_is_neither_a_path_nor_a_repository_is_named(source: str) -> None:
    """A path that does not exist is not asked of the hub."""
    with pytest.raises(SAEFormatError, match=rf"repository on the hub, got `{source}`"):
        load_sae(source)


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    """Whatever family a file is of, the error names the file, the shape and the expected one."""
    publish(tmp_path, d_sae=7)
    with pytest.raises(SAEFormatError, match=r"shape \(4, 7\), got \(4, 6\) - .*sae_weights"):
        load_sae(tmp_path)


def test_an_option_that_contradicts_itself_names_the_file(tmp_path: Path) -> None:
    """What only the SAE itself finds out is told with the file it came from."""
    publish(tmp_path, architecture="topk", k=9)
    with pytest.raises(SAEFormatError, match=r"k in 1\.\.6, got 9 .*in .*sae_weights"):
        load_sae(tmp_path)


def test_tensors_lie_where_they_are_asked_to(tmp_path: Path) -> None:
    """`device` is that of every tensor."""
    sae = load_sae(publish(tmp_path), device=torch.device("cpu"))
    assert {tensor.device.type for tensor in sae.buffers()} == {"cpu"}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer_12/width_16k/average_l0_82/params.npz", 12),
        ("blocks.7.hook_resid_post/sae_weights.safetensors", 7),
        ("layers.3.mlp/sae.safetensors", 3),
        ("resid_post/layer_17_width_16k_l0_small/params.safetensors", 17),
        ("16k/average_l0_5/params.npz", None),
        ("layer_1/layer_2/params.npz", None),
        ("player_3/x", None),
    ],
)
def test_the_layer_is_read_from_the_names_that_publishers_give(
    name: str, layer: int | None
) -> None:
    """Widths and sparsities are no layers, and two different layers are none."""
    assert layer_in(name) == layer


def test_a_code_is_that_of_its_class() -> None:
    """Architectures with the same tensors but another activation have another identity."""
    weights = Weights(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4))
    plain, cut = StandardSAE(weights), JumpReLUSAE(weights, threshold=torch.zeros(4))
    assert plain.identity()["weights_sha256"] != cut.identity()["weights_sha256"]
