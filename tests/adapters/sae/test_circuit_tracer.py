"""Transcoder sets as circuit-tracer reads them, Michael Hanna's of Qwen3 among them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from adapters.sae.formulas import assert_same
from adapters.sae.published import circuit_tracer
from aegir_adapters.sae import Origin, load_sae
from aegir_stream.errors import SAEFormatError


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_a_layer_computes_a_relu_between_two_places(
    tmp_path: Path, *, turned: bool, skip: bool
) -> None:
    """The decoder may lie either way round, and a skip connection may stand beside the latents."""
    published = circuit_tracer(tmp_path, turned=turned, skip=skip)
    sae = load_sae(published.path, layer=1)
    assert sae.architecture == ("skip_transcoder" if skip else "transcoder")
    assert_same(sae, published)


def test_the_configuration_names_model_and_places(tmp_path: Path) -> None:
    """Where it is missing, the places are those that circuit-tracer takes."""
    folder = circuit_tracer(tmp_path).path
    path = str(folder / "layer_1.safetensors")
    bare = Origin(
        hook_name="blocks.1.mlp.hook_in", hook_name_out="blocks.1.hook_mlp_out", path=path
    )
    named = msgspec.structs.replace(bare, model_name="Qwen/Qwen3-4B")
    assert load_sae(folder, layer=1).origin == named
    (folder / "config.yaml").unlink()
    assert load_sae(path).origin == bare
    (folder / "config.yaml").write_text("feature_input_hook: hook_resid_mid\n")
    assert load_sae(path).origin.hook_name == "blocks.1.hook_resid_mid"
    (folder / "config.yaml").write_text("model_name: [")
    with pytest.raises(SAEFormatError, match=r"config\.yaml.*no configuration of circuit-tracer"):
        load_sae(path)


def test_a_layer_must_be_chosen(tmp_path: Path) -> None:
    """A set holds a transcoder for each layer."""
    folder = circuit_tracer(tmp_path).path
    with pytest.raises(SAEFormatError, match=r"got 2: `layer_0\.safetensors`, `layer_1\.safeten"):
        load_sae(folder)
    with pytest.raises(SAEFormatError, match="of layer 7, got"):
        load_sae(folder, layer=7)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """An encoder is [latents, width] in these files, and a threshold is of another format."""
    file = circuit_tracer(tmp_path).path / "layer_1.safetensors"
    held = load_file(file)
    save_file({**held, "W_enc": held["W_enc"].T.contiguous()}, file)
    with pytest.raises(SAEFormatError, match=r"`W_enc` of shape \(64, 12\), got \(12, 64\).*trans"):
        load_sae(file)
    save_file({**held, "log_thresholds": held["b_enc"].clone()}, file)
    with pytest.raises(SAEFormatError, match="`log_thresholds` unknown"):
        load_sae(file)
    save_file({}, file)
    with pytest.raises(SAEFormatError, match="got none"):
        load_sae(file)
