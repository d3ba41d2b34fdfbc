"""Transcoders of MLPs as circuit-tracer reads them: `layer_0.safetensors` for each layer.

Michael Hanna publishes those of Qwen3 so: `W_enc` [n, d], `W_dec` [n, d], `b_enc` and `b_dec`, a
relu between them. Some sets of the same layout hold the decoder the other way round, which its
shape shows, and some a `W_skip` [d, d], by whose transpose the input is multiplied. `config.yaml`
names the model and the places, where there is one.
"""

from __future__ import annotations

import re

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.sae.families import Found, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.reading import TensorFile, read_tensors
from aegir_adapters.sae.standard import StandardSAE
from aegir_adapters.sae.transcoding import Transcoding
from aegir_adapters.sae.weights import Origin, Weights
from aegir_stream.errors import SAEFormatError

_FILE = re.compile(r"(?P<folder>.*/)?layer_(?P<layer>\d+)\.safetensors")


class _Config(Struct, frozen=True):
    """What of `config.yaml` says where the transcoders belong, by circuit-tracer's defaults."""

    model_name: str | None = None
    feature_input_hook: str = "mlp.hook_in"
    feature_output_hook: str = "hook_mlp_out"


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the transcoder of a layer; `None` where no file is named `layer_{n}.safetensors`."""
    matches = [(name, _FILE.fullmatch(name)) for name in files.names]
    candidates = [
        Found(weights=name, layer=int(match["layer"])) for name, match in matches if match
    ]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> StandardSAE:
    """Return the transcoder; errors as in `Family.read`."""
    held = read_tensors(files.path(found.weights), device=device)
    held.expect(["W_enc", "W_dec", "b_enc", "b_dec"], optional=["W_skip"])
    weights = _weights(held)
    return StandardSAE(
        weights,
        apply_b_dec_to_input=False,
        transcoding=Transcoding(w_skip=_skip(held)),
        origin=_origin(files, found),
    )


def _weights(held: TensorFile) -> Weights:
    d_model, n_latents = held.length("b_dec"), held.length("b_enc")
    held.check_orientation(d_model, n_latents)
    turned = tuple(held.tensors["W_dec"].shape) == (d_model, n_latents)
    w_dec = held.take("W_dec", (d_model, n_latents) if turned else (n_latents, d_model))
    return Weights(
        w_enc=held.take("W_enc", (n_latents, d_model)).T,
        b_enc=held.take("b_enc", (n_latents,)),
        w_dec=w_dec.T if turned else w_dec,
        b_dec=held.take("b_dec", (d_model,)),
    )


def _skip(held: TensorFile) -> Tensor | None:
    if "W_skip" not in held.tensors:
        return None
    d_model = held.length("b_dec")
    return held.take("W_skip", (d_model, d_model))


def _origin(files: SAEFiles, found: Found) -> Origin:
    folder = found.weights.rpartition("/")[0]
    config = _config(files, f"{folder}/config.yaml" if folder else "config.yaml")
    block = f"blocks.{found.layer}"
    origin = origin_of(
        files,
        found,
        hook_name=f"{block}.{config.feature_input_hook}",
        model_name=config.model_name,
    )
    return msgspec.structs.replace(origin, hook_name_out=f"{block}.{config.feature_output_hook}")


def _config(files: SAEFiles, name: str) -> _Config:
    if name not in files.names:
        return _Config()
    path = files.path(name)
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=_Config)
    except msgspec.DecodeError as error:
        raise SAEFormatError(
            f"{error} - in {path}", hint="It is no configuration of circuit-tracer"
        ) from error
