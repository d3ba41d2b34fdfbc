"""What SAELens writes is read here as SAELens reads it: the same codes, latents and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aegir_adapters.sae import SparseAutoencoder, load_sae, save_sae
from aegir_stream.errors import SAEFormatError

D_IN, D_OUT, D_SAE, K = 12, 10, 96, 16

NORMALISATIONS = ["none", "constant_norm_rescale", "layer_norm"]

Options = dict[str, Any]

ARCHITECTURES: dict[str, tuple[str, Options]] = {
    "standard": ("StandardSAE", {}),
    "standard uncentred": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "topk": ("TopKSAE", {"k": 20}),
    "topk by contribution": ("TopKSAE", {"k": 20, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("JumpReLUSAE", {}),
    "gated": ("GatedSAE", {}),
    "gated uncentred": ("GatedSAE", {"apply_b_dec_to_input": False}),
    "transcoder": ("Transcoder", {"d_out": D_OUT}),
    "skip transcoder": ("SkipTranscoder", {"d_out": D_OUT}),
    "jumprelu transcoder": ("JumpReLUTranscoder", {"d_out": D_OUT}),
    "jumprelu skip transcoder": ("JumpReLUSkipTranscoder", {"d_out": D_OUT}),
}

TRAINED: dict[str, tuple[str, Options]] = {
    "gated": ("GatedTrainingSAE", {}),
    "topk": ("TopKTrainingSAE", {"k": 20}),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": 20}),
    "batchtopk not rescaled": (
        "BatchTopKTrainingSAE",
        {"k": 20, "rescale_acts_by_decoder_norm": False},
    ),
    "matryoshka": ("MatryoshkaBatchTopKTrainingSAE", {"k": 20, "matryoshka_widths": [32, D_SAE]}),
}


@pytest.fixture
def x() -> torch.Tensor:
    """Give residuals that are neither centred nor of one size."""
    draws = torch.Generator().manual_seed(5)
    size = torch.rand(40, 1, generator=draws) * 4 + 0.5
    return torch.randn(40, D_IN, generator=draws) * size + 0.3


def theirs(sae_lens: Any, name: str, **options: Any) -> Any:
    """Return an SAE of a class of SAELens with random weights of about the usual sizes."""
    transcodes = "Transcoder" in name
    base = {"d_in": D_IN, "d_sae": D_SAE, **({"apply_b_dec_to_input": False} if transcodes else {})}
    config = getattr(sae_lens, f"{name}Config")(**{**base, **options})
    hook = "blocks.3.ln2.hook_normalized" if transcodes else "blocks.3.hook_resid_post"
    config.metadata.hook_name = hook
    sae = getattr(sae_lens, name)(config)
    draws = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for label, tensor in sae.named_parameters():
            shift = 0.4 if label == "threshold" else 0.0
            tensor.copy_(torch.randn(tensor.shape, generator=draws) * 0.4 + shift)
    return sae


def assert_same(ours: SparseAutoencoder, reference: Any, x: torch.Tensor) -> None:
    """Compare codes, the K hardest latents, reconstructions and errors, to 1e-5."""
    with torch.no_grad():
        code, reconstruction = reference.encode(x), reference(x)
    target = torch.randn(reconstruction.shape, generator=torch.Generator().manual_seed(2))
    top = ours.top(x, k=K, target=target if ours.is_transcoder else None)
    expected = code.topk(K)
    active = expected.values > 0
    assert 0 < int(active.sum()) < active.numel() or active.all()
    assert_close(ours.encode(x), code)
    assert_close(ours(x), reconstruction)
    assert_close(top.activations, expected.values)
    assert torch.equal(top.indices[active], expected.indices[active].int())
    assert torch.equal(top.l0, (code > 0).sum(1, dtype=torch.int32))
    assert torch.equal(top.fired, (code > 0).any(0))
    aim = target if ours.is_transcoder else x
    assert_close(top.reconstruction_loss, (aim - reconstruction).square().sum(1))


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare to the last digits of float32."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_saelens_saves_computes_the_same(
    sae_lens: Any, tmp_path: Path, x: torch.Tensor, architecture: str, normalisation: str
) -> None:
    """Every architecture, with every normalisation that depends on the row."""
    name, options = ARCHITECTURES[architecture]
    reference = theirs(sae_lens, name, normalize_activations=normalisation, **options)
    reference.save_model(tmp_path)
    ours = load_sae(tmp_path)
    assert ours.architecture == reference.cfg.architecture()
    assert ours.origin.hook_name == reference.cfg.metadata.hook_name
    assert_same(ours, reference, x)


@pytest.mark.parametrize("architecture", TRAINED)
def test_what_a_training_of_saelens_publishes_computes_the_same(
    sae_lens: Any, tmp_path: Path, x: torch.Tensor, architecture: str
) -> None:
    """BatchTopK and Matryoshka SAEs are published with a threshold, as JumpReLU SAEs."""
    name, options = TRAINED[architecture]
    training = theirs(sae_lens, name, **options)
    if hasattr(training, "topk_threshold"):
        training.topk_threshold.fill_(0.7)
    training.save_inference_model(tmp_path)
    reference = sae_lens.SAE.load_from_disk(tmp_path)
    assert_same(load_sae(tmp_path), reference, x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["topk", "gated", "jumprelu skip transcoder"])
def test_files_in_half_precision_are_widened(
    sae_lens: Any, tmp_path: Path, x: torch.Tensor, architecture: str, dtype: str
) -> None:
    """Weights keep the values that they were stored with; all else is float32."""
    name, options = ARCHITECTURES[architecture]
    theirs(sae_lens, name, dtype=dtype, **options).save_model(tmp_path)
    stored = load_file(tmp_path / "sae_weights.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}
    assert_same(load_sae(tmp_path), sae_lens.SAE.load_from_disk(tmp_path, dtype="float32"), x)


@pytest.mark.parametrize("architecture", ["standard", "topk", "gated", "skip transcoder"])
def test_a_factor_is_folded_as_saelens_folds_it(
    sae_lens: Any, tmp_path: Path, x: torch.Tensor, architecture: str
) -> None:
    """SAELens multiplies by what `scale` divides by."""
    name, options = ARCHITECTURES[architecture]
    reference = theirs(sae_lens, name, normalize_activations="expected_average_only_in", **options)
    reference.save_model(tmp_path)
    reference.fold_activation_norm_scaling_factor(1 / 2.5)
    assert_same(load_sae(tmp_path, scale=2.5), reference, x)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_reads_what_is_saved_here(
    sae_lens: Any, tmp_path: Path, x: torch.Tensor, architecture: str, normalisation: str
) -> None:
    """Saved again, an SAE has the identity it had, and is the same to SAELens."""
    name, options = ARCHITECTURES[architecture]
    reference = theirs(sae_lens, name, normalize_activations=normalisation, **options)
    reference.save_model(tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    folder = save_sae(ours, tmp_path / "ours")
    assert load_sae(folder).identity() == {**ours.identity(), "path": str(folder)}
    assert_same(ours, sae_lens.SAE.load_from_disk(folder), x)


def old_tensors(*names: str) -> dict[str, torch.Tensor]:
    """Return tensors by the names and shapes that SAELens had from the start."""
    draws = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    shapes |= dict.fromkeys(names, (D_SAE,))
    return {name: torch.randn(shape, generator=draws) * 0.4 for name, shape in shapes.items()}


def old_config(**options: Any) -> Options:
    """Return a flat `cfg.json` as the first versions wrote it."""
    return {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "hook_point_head_index": None,
        "activation_fn_str": "relu",
        "noise_scale": 0.0,
        "from_pretrained_path": None,
        "l1_coefficient": 8e-5,
        **options,
    }


def old_cases() -> Iterator[Any]:
    """Yield configurations of versions before 6, and the tensors beside them."""
    standard = old_tensors("b_enc")
    yield pytest.param(old_config(), standard, id="the first")
    ones = {**standard, "scaling_factor": torch.ones(D_SAE)}
    yield pytest.param(old_config(), ones, id="with a factor that changes nothing")
    flags = {"normalize_activations": False, "apply_b_dec_to_input": False}
    yield pytest.param(old_config(**flags), standard, id="flags")
    unset = old_config(normalize_activations=None)
    del unset["activation_fn_str"]
    yield pytest.param(unset, standard, id="null")
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 20}}
    yield pytest.param(old_config(**topk), standard, id="topk by its function")
    named = {"sae_lens_version": "5.10.3", "hook_name": "blocks.8.hook_resid_pre"}
    yield pytest.param(
        old_config(**named, architecture="jumprelu", activation_fn="relu"),
        old_tensors("b_enc", "threshold"),
        id="jumprelu of version 5",
    )
    yield pytest.param(
        old_config(**named, architecture="gated", normalize_activations="layer_norm"),
        old_tensors("b_gate", "b_mag", "r_mag"),
        id="gated of version 5",
    )
    rescaled = {"normalize_activations": "constant_norm_rescale"}
    yield pytest.param(old_config(**named, **rescaled), standard, id="rescaled of version 5")


@pytest.mark.parametrize(("config", "tensors"), list(old_cases()))
def test_files_of_older_versions_compute_what_saelens_makes_of_them(
    sae_lens: Any,
    tmp_path: Path,
    x: torch.Tensor,
    config: Options,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Old names, old defaults, and a factor of ones are understood as SAELens 6 does."""
    write(tmp_path, config, tensors)
    ours = load_sae(tmp_path)
    assert (ours.origin.layer, ours.origin.model_name) == (7, "gpt2-small")
    assert_same(ours, sae_lens.SAE.load_from_disk(tmp_path), x)


@pytest.mark.parametrize(
    ("change", "factor", "words"),
    [
        ({}, 2.0, r"no `scaling_factor` but ones, got \(96,\) of 2\.\.2"),
        ({"finetuning_scaling_factor": True}, 2.0, r"SAELens 6 refuses it too"),
    ],
)
def test_a_finetuned_factor_is_refused_where_saelens_refuses_it(
    sae_lens: Any, tmp_path: Path, change: Options, factor: float, words: str
) -> None:
    """A factor that would change the decoder is no part of the format that SAELens 6 reads."""
    tensors = {**old_tensors("b_enc"), "scaling_factor": torch.full((D_SAE,), factor)}
    write(tmp_path, old_config(**change), tensors)
    with pytest.raises((ValueError, KeyError, RuntimeError)):
        sae_lens.SAE.load_from_disk(tmp_path)
    with pytest.raises(SAEFormatError, match=words):
        load_sae(tmp_path)


def test_the_state_of_a_training_is_refused(sae_lens: Any, tmp_path: Path) -> None:
    """A checkpoint of a BatchTopK training says how it is to be published."""
    theirs(sae_lens, "BatchTopKTrainingSAE", k=20).save_model(tmp_path)
    with pytest.raises(SAEFormatError, match=r"got `batchtopk`.*save_inference_model"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["AbsTopKSAE", "MatchingPursuitSAE"])
def test_architectures_that_are_not_built_are_named(
    sae_lens: Any, tmp_path: Path, name: str
) -> None:
    """A code with negative values, or one that is searched for, is refused and not approximated."""
    reference = theirs(sae_lens, name)
    reference.save_model(tmp_path)
    architecture = reference.cfg.architecture()
    with pytest.raises(SAEFormatError, match=f"`jumprelu`.*, got `{architecture}`"):
        load_sae(tmp_path)


def write(folder: Path, config: Options, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a directory as it would be published."""
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder
