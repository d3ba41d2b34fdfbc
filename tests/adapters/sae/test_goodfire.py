"""Goodfire's SAEs: two linear layers in one file, the layer in its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.sae.formulas import assert_same
from adapters.sae.published import goodfire
from aegir_adapters.sae import Origin, StandardSAE, load_sae
from aegir_stream.errors import SAEFormatError


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize(
    ("name", "linear", "model", "layer"),
    [
        (
            "Llama-3.3-70B-Instruct-SAE-l50",
            "_linear",
            "meta-llama/Llama-3.3-70B-Instruct",
            50,
        ),
        (
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19",
            "",
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
            19,
        ),
        ("Mine-SAE-l3", "_linear", "Mine", 3),
    ],
)
def test_both_namings_compute_a_relu_on_the_input_as_it_is(
    tmp_path: Path, suffix: str, name: str, linear: str, model: str, layer: int
) -> None:
    """Linear layers are turned, and nothing is subtracted from the input."""
    published = goodfire(tmp_path, name=name, suffix=suffix, linear=linear)
    sae = load_sae(published.path)
    assert isinstance(sae, StandardSAE)
    assert_same(sae, published)
    assert sae.origin == Origin(
        layer=layer,
        hook_name=f"blocks.{layer}.hook_resid_post",
        model_name=model,
        path=str(published.path / f"{name}{suffix}"),
    )


def test_another_layer_is_refused(tmp_path: Path) -> None:
    """The layer in the name is the only one there is."""
    published = goodfire(tmp_path)
    assert_same(load_sae(published.path, layer=19), published)
    with pytest.raises(SAEFormatError, match=r"of layer 3, got `Llama-.*-l19\.pth`"):
        load_sae(published.path, layer=3)


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    """A layer of torch is [out, in], and its biases say how wide both are."""
    file = next(goodfire(tmp_path).path.iterdir())
    held = torch.load(file)
    torch.save({**held, "encoder_linear.weight": held["encoder_linear.weight"].T}, file)
    with pytest.raises(SAEFormatError, match=r"`encoder_linear.weight` of shape \(64, 12\), got"):
        load_sae(file)
    del held["encoder_linear.bias"]
    torch.save(held, file)
    with pytest.raises(SAEFormatError, match=r"`encoder_linear\.bias` missing"):
        load_sae(file)
    torch.save([torch.ones(3)], file)
    with pytest.raises(SAEFormatError, match="Expected tensors by name, got list"):
        load_sae(file)
