"""SAEs of Llama Scope (arXiv:2410.20526) and of its successor on DeepSeek-R1-Distill-Llama-8B.

Both hold two linear layers and pass what exceeds a threshold. Both were trained on inputs brought
to a mean norm of ``sqrt(d_model)``, which is folded into the weights here: activations are those of
the normalised inputs, as SAELens has them. They differ in what the threshold is compared with:

- Llama Scope (`hyperparams.json` and `checkpoints/final.safetensors`) compares one number for all
  latents with pre-activations in the units of the residual stream, each multiplied by the norm of
  its decoder row. That is how its authors load it: norms folded first, then decoders brought to
  norm 1, then the threshold (OpenMOSS/Language-Model-SAEs at 4ec6f0a, `SparseAutoEncoder
  .from_config`).
- Llama Scope R1 (`config.json` and `sae_weights.safetensors`) has a threshold for each latent, as
  its logarithm, compared with pre-activations of normalised inputs times the norm of the decoder
  row (the same at b6471ee, `SparseAutoEncoder.encode`). The mean norm is one more tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.sae.families import Found, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.reading import (
    TensorFile,
    description,
    linear_layers,
    read_json,
    read_tensors,
    told_by_name,
)
from aegir_adapters.sae.saelens_config import one_of
from aegir_adapters.sae.transcoding import Transcoding
from aegir_adapters.sae.weights import Origin, Weights
from aegir_stream.errors import SAEFormatError

_MODEL = "meta-llama/Llama-3.1-8B"
_NORM = "dataset_average_activation_norm"
_LAYERS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_LOG_THRESHOLD = "log_jumprelu_threshold"
_FOLDER = re.compile(r"(?<=[/-])L(\d+)(?:R|A|M|TC)(?:-\d+x)?/")
_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_post")


class _Config(Struct, frozen=True):
    """What of `hyperparams.json` and `config.json` decides on the output."""

    d_model: int
    hook_point_in: str
    hook_point_out: str | None = None
    d_sae: int | None = None
    expansion_factor: int | None = None
    act_fn: str = "jumprelu"
    jump_relu_threshold: float = 0.0
    norm_activation: str = "dataset-wise"
    dataset_average_activation_norm: dict[str, float] | None = None
    sparsity_include_decoder_norm: bool = True
    apply_decoder_bias_to_pre_encoder: bool = False
    use_glu_encoder: bool = False

    @property
    def shape(self) -> tuple[int, int] | None:
        """Input width and number of latents, where both are stated."""
        n_latents = self.d_sae or self.d_model * (self.expansion_factor or 0)
        return (self.d_model, n_latents) if n_latents else None


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the SAE of a layer; `None` where no folder holds the two files of either layout."""
    names = set(files.names)
    pairs = [(name, _weights_beside(name, names)) for name in files.names]
    candidates = [
        Found(weights=weights, config=name, layer=_layer(files, name))
        for name, weights in pairs
        if weights
    ]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> JumpReLUSAE:
    """Return the SAE; errors as in `Family.read`."""
    path = description(files, found)
    config = read_json(path, _Config)
    _check(config, path)
    held = read_tensors(files.path(found.weights), device=device)
    origin = _origin(files, found, config)
    if path.name == "hyperparams.json":
        return _with_one_threshold(config, held, origin)
    return _with_many_thresholds(config, held, origin)


def _origin(files: SAEFiles, found: Found, config: _Config) -> Origin:
    reads, predicts = config.hook_point_in, config.hook_point_out
    residual = _HOOK.fullmatch(reads)
    transcodes = predicts is not None and predicts != reads
    origin = origin_of(
        files,
        found,
        layer=int(residual[1]) if residual and not transcodes else None,
        hook_name=reads,
        model_name=_MODEL,
    )
    return msgspec.structs.replace(origin, hook_name_out=predicts if transcodes else None)


def _with_one_threshold(config: _Config, held: TensorFile, origin: Origin) -> JumpReLUSAE:
    held.expect(_LAYERS)
    norms = config.dataset_average_activation_norm or {}
    factor, factor_out = (_factor(config, norms.get(key), held, key) for key in ("in", "out"))
    weights = linear_layers(held, shape=config.shape).float32()
    w_dec = weights.w_dec / factor_out
    norm = torch.ones(())
    if config.sparsity_include_decoder_norm:
        norm = _row_norms(w_dec * factor)
    return JumpReLUSAE(
        Weights(
            weights.w_enc * norm * factor,
            weights.b_enc * norm,
            w_dec / norm[..., None],
            weights.b_dec / factor_out,
        ),
        threshold=torch.full_like(weights.b_enc, config.jump_relu_threshold * factor),
        apply_b_dec_to_input=config.apply_decoder_bias_to_pre_encoder,
        transcoding=Transcoding() if origin.hook_name_out else None,
        origin=origin,
    )


def _with_many_thresholds(config: _Config, held: TensorFile, origin: Origin) -> JumpReLUSAE:
    key = f"{_NORM}.{config.hook_point_in}"
    others = [name for name in held.tensors if name.startswith(f"{_NORM}.")]
    held.expect([*_LAYERS, _LOG_THRESHOLD], optional=others)
    mean = held.take(key, ()).item() if key in others else None
    weights = linear_layers(held, shape=config.shape).float32()
    threshold = held.take(_LOG_THRESHOLD, tuple(weights.b_enc.shape)).float().exp()
    if config.sparsity_include_decoder_norm:
        threshold = threshold / _row_norms(weights.w_dec)
    return JumpReLUSAE(
        weights,
        threshold=threshold,
        apply_b_dec_to_input=config.apply_decoder_bias_to_pre_encoder,
        scale=1 / _factor(config, mean, held, key),
        origin=origin,
    )


def _factor(config: _Config, mean_norm: float | None, held: TensorFile, key: str) -> float:
    """Return what activations are multiplied by to have a mean norm of sqrt(d_model)."""
    if config.norm_activation in {"none", "inference"}:
        return 1.0
    if mean_norm is None or not (math.isfinite(mean_norm) and mean_norm > 0):
        raise SAEFormatError(
            f"Expected a mean norm as a positive number, got {mean_norm} - at `{key}` of `{_NORM}`"
            f" (in or beside {held.path})",
            hint="Activations are brought to a norm of sqrt(d_model) by it; fetch the files again",
        )
    return math.sqrt(config.d_model) / mean_norm


def _row_norms(w_dec: Tensor) -> Tensor:
    """Return the norms of decoder rows, 1 for a latent without a direction."""
    norms: Tensor = torch.linalg.vector_norm(w_dec, dim=1)
    return torch.where(norms == 0, 1.0, norms)


def _weights_beside(config: str, names: set[str]) -> str | None:
    folder, _, name = config.rpartition("/")
    prefix = f"{folder}/" if folder else ""
    if name == "hyperparams.json":
        weights = f"{prefix}checkpoints/final.safetensors"
    elif name == "config.json" and f"{prefix}cfg.json" not in names:
        weights = f"{prefix}sae_weights.safetensors"
    else:
        return None
    return weights if weights in names else None


def _layer(files: SAEFiles, config: str) -> int | None:
    match = told_by_name(_FOLDER, files, config)
    return int(match[1]) if match else None


def _check(config: _Config, path: Path) -> None:
    _one(path, "act_fn", config.act_fn, ["jumprelu", "topk"])
    if config.act_fn == "topk" and config.jump_relu_threshold <= 0:
        raise SAEFormatError(
            f"Expected a positive threshold for `topk`, got {config.jump_relu_threshold}"
            f" - at `$.jump_relu_threshold` ({path})",
            hint="Llama Scope replaces the k largest by a threshold after training",
        )
    _one(path, "norm_activation", config.norm_activation, ["dataset-wise", "inference", "none"])
    _one(path, "use_glu_encoder", config.use_glu_encoder, [False])
    if path.name == "config.json" and config.hook_point_out:
        _one(path, "hook_point_out", config.hook_point_out, [config.hook_point_in])


def _one(path: Path, key: str, got: object, allowed: Sequence[object]) -> None:
    if got not in allowed:
        raise SAEFormatError(
            f"Expected {one_of(str(value) for value in allowed)}, got `{got}`"
            f" - at `$.{key}` ({path})",
            hint="Choose another SAE: this variant is not built here",
        )
