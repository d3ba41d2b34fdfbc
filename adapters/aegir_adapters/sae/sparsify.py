"""Sparse coders as EleutherAI's sparsify saves them: `layers.3/{cfg.json,sae.safetensors}`.

What they compute follows sparsify itself (`SparseCoder.encode` and `.forward`): `b_dec` is
subtracted from the input unless the coder is a transcoder, and a skip connection reads the input as
it is. (SAELens reads these files too, and differs from that in two places: it turns `W_dec`, and it
takes whether to subtract from `normalize_decoder`, which only concerns the training.)
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.sae.families import Found, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.groupmax import GroupMaxSAE
from aegir_adapters.sae.reading import TensorFile, description, read_json, read_tensors
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.transcoding import Transcoding
from aegir_adapters.sae.weights import Origin, Weights
from aegir_stream.errors import SAEFormatError

_LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)(?P<inside>\..*)?")


class _Config(Struct, frozen=True):
    """What of `cfg.json` decides on the output, by sparsify's defaults."""

    d_in: int
    activation: Literal["topk", "groupmax"] = "topk"
    k: int = 32
    num_latents: int = 0
    expansion_factor: int = 32
    skip_connection: bool = False
    transcode: bool = False
    signed: bool = False

    @property
    def n_latents(self) -> int:
        return self.num_latents or self.d_in * self.expansion_factor


class _Run(Struct, frozen=True):
    model: str | None = None


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the coder of a layer; `None` where no `sae.safetensors` lies beside a `cfg.json`."""
    candidates = [
        Found(weights=name, config=config, layer=_layer(_module(files, name)))
        for name in files.names
        if PurePosixPath(name).name == "sae.safetensors"
        and (config := str(PurePosixPath(name).with_name("cfg.json"))) in files.names
    ]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> TopKSAE:
    """Return the coder; errors as in `Family.read`."""
    path = description(files, found)
    config = read_json(path, _Config)
    _check(config, path)
    held = read_tensors(files.path(found.weights), device=device)
    transcoding = Transcoding(w_skip=_skip(held, config)) if config.transcode else None
    architecture = GroupMaxSAE if config.activation == "groupmax" else TopKSAE
    return architecture(
        _weights(held, config),
        k=config.k,
        apply_b_dec_to_input=not config.transcode,
        transcoding=transcoding,
        origin=_origin(files, found, config),
    )


def _weights(held: TensorFile, config: _Config) -> Weights:
    """Return the weights; the decoder may also be a linear layer, whose matrix is turned."""
    d_in, n_latents = config.d_in, config.n_latents
    linear = "decoder.weight" in held.tensors
    decoder = "decoder.weight" if linear else "W_dec"
    bias = "decoder.bias" if linear and "decoder.bias" in held.tensors else "b_dec"
    skip = ["W_skip"] if config.skip_connection else []
    held.expect(["encoder.weight", "encoder.bias", decoder, bias, *skip])
    w_dec = held.take(decoder, (d_in, n_latents) if linear else (n_latents, d_in))
    return Weights(
        w_enc=held.take("encoder.weight", (n_latents, d_in)).T,
        b_enc=held.take("encoder.bias", (n_latents,)),
        w_dec=w_dec.T if linear else w_dec,
        b_dec=held.take(bias, (d_in,)),
    )


def _skip(held: TensorFile, config: _Config) -> Tensor | None:
    if not config.skip_connection:
        return None
    held.expect(["W_skip"], optional=held.tensors)
    return held.take("W_skip", (config.d_in, config.d_in))


def _check(config: _Config, path: Path) -> None:
    if config.signed:
        raise SAEFormatError(
            f"Expected false, got true - at `$.signed` ({path})",
            hint="Coders whose latents may be negative are not built here; choose another one",
        )
    if config.skip_connection and not config.transcode:
        raise SAEFormatError(
            f"Expected a transcoder where there is a skip connection, got an autoencoder"
            f" - at `$.transcode` ({path})",
            hint="A linear map from the residual stream to itself is not built here",
        )


def _module(files: SAEFiles, weights: str) -> str:
    """Return the module whose output was trained on: its flinear bears the name."""
    return Path(files.located(weights)).absolute().parent.name


def _layer(module: str) -> int | None:
    match = _LAYER.fullmatch(module)
    return int(match[1]) if match else None


def _origin(files: SAEFiles, found: Found, config: _Config) -> Origin:
    """Return where it came from. A transcoder reads its module's input and predicts the output."""
    module = _module(files, found.weights)
    model = _model(files)
    if config.transcode:
        origin = origin_of(files, found, hook_name=f"{module}.input", model_name=model)
        return msgspec.structs.replace(origin, hook_name_out=f"{module}.output")
    match = _LAYER.fullmatch(module)
    if match is None or match["inside"]:
        return origin_of(files, found, hook_name=module, model_name=model)
    hook = f"blocks.{match[1]}.hook_resid_post"
    return origin_of(files, found, layer=int(match[1]), hook_name=hook, model_name=model)


def _model(files: SAEFiles) -> str | None:
    """Return the model, which only the configuration of the whole training names."""
    if "config.json" not in files.names:
        return None
    return read_json(files.path("config.json"), _Run).model
