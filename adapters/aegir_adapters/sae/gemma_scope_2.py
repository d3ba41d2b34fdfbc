"""SAEs and transcoders of Gemma Scope 2: `resid_post/layer_17_width_16k_l0_small/`.

`params.safetensors` holds `w_enc` [d, n], `w_dec` [n, d], `b_enc`, `b_dec` and `threshold` of a
JumpReLU SAE that subtracts nothing from its input; `config.json` beside it names the place it
reads, and where some folders lack it, their own name does. The `_affine` transcoders hold an
`affine_skip_connection` [d_in, d_out] as well, which multiplies the input from the right (SAELens
turns it into its `W_skip`). Cross-layer transcoders, whose latents write into all later layers, are
not read.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.sae.families import Found, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.gemma_scope import TENSORS, weights_of
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.reading import TensorFile, read_json, read_tensors, told_by_name
from aegir_adapters.sae.transcoding import Transcoding
from aegir_adapters.sae.weights import Origin
from aegir_stream.errors import SAEFormatError

_FOLDER = re.compile(
    r"/(?P<place>resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(?P<layer>\d+)_width_[^/]+/"
)
_REPOSITORY = re.compile(r"gemma-scope-2-(?P<size>[^-/]+)-(?P<tuned>pt|it)")
_HOOK = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<inside>.+)")
_AFFINE = "affine_skip_connection"
_PLACES = {
    "output": "resid_post",
    "self_attn.o_proj.input": "attn_out",
    "post_feedforward_layernorm.output": "mlp_out",
    "pre_feedforward_layernorm.output": "transcoder",
}
_HOOKS = {
    "resid_post": "hook_resid_post",
    "attn_out": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
    "transcoder": "hook_mlp_in",
}


class _Config(Struct, frozen=True):
    """What `config.json` says that matters here."""

    architecture: str = "jump_relu"
    type: str | None = None
    model_name: str | None = None
    hf_hook_point_in: str | None = None
    affine_connection: bool = False


class _Place(Struct, frozen=True):
    """What is read: `resid_post`, `attn_out`, `mlp_out` or, by a transcoder, what the MLP reads."""

    name: str
    layer: int


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the SAE of a layer; `None` where no file is named `params.safetensors`."""
    candidates = [
        _found(files, name)
        for name in files.names
        if PurePosixPath(name).name == "params.safetensors"
    ]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> JumpReLUSAE:
    """Return the SAE; errors as in `Family.read`."""
    path = files.path(found.config) if found.config else None
    config = read_json(path, _Config) if path else _Config()
    place = _place(files, found, config)
    _check(config, path or Path(files.located(found.weights)))
    held = read_tensors(files.path(found.weights), device=device)
    transcodes = place.name == "transcoder"
    told = [_AFFINE] if config.affine_connection else []
    held.expect([*TENSORS, *told], optional=[_AFFINE] if transcodes and path is None else [])
    weights = weights_of(held)
    return JumpReLUSAE(
        weights,
        threshold=held.take("threshold", tuple(weights.b_enc.shape)),
        apply_b_dec_to_input=False,
        transcoding=Transcoding(w_skip=_skip(held)) if transcodes else None,
        origin=_origin(files, found, config, place),
    )


def _found(files: SAEFiles, weights: str) -> Found:
    config = str(PurePosixPath(weights).with_name("config.json"))
    folder = told_by_name(_FOLDER, files, weights)
    return Found(
        weights=weights,
        config=config if config in files.names else None,
        layer=int(folder["layer"]) if folder else None,
    )


def _place(files: SAEFiles, found: Found, config: _Config) -> _Place:
    hook = _HOOK.fullmatch(config.hf_hook_point_in or "")
    if hook and hook["inside"] in _PLACES:
        return _Place(_PLACES[hook["inside"]], int(hook["layer"]))
    folder = told_by_name(_FOLDER, files, found.weights)
    if folder is None or config.hf_hook_point_in is not None:
        raise SAEFormatError(
            f"Expected a place such as `model.layers.17.output`, got `{config.hf_hook_point_in}`"
            f" - at `$.hf_hook_point_in` of config.json ({files.located(found.weights)})",
            hint="Fetch config.json as well, or keep the folders' names, as in"
            " resid_post/layer_17_width_16k_l0_small",
        )
    return _Place(folder["place"], int(folder["layer"]))


def _skip(held: TensorFile) -> Tensor | None:
    if _AFFINE not in held.tensors:
        return None
    d_model = held.length("b_dec")
    return held.take(_AFFINE, (d_model, d_model)).T


def _check(config: _Config, path: Path) -> None:
    if config.architecture != "jump_relu" or config.type == "crosscoder":
        raise SAEFormatError(
            "Expected architecture `jump_relu` and type `sae` or `transcoder`, got"
            f" `{config.architecture}` and `{config.type}` - in {path}",
            hint="Choose another one: this is not built here",
        )


def _origin(files: SAEFiles, found: Found, config: _Config, place: _Place) -> Origin:
    name = told_by_name(_REPOSITORY, files, found.weights)
    model = f"google/gemma-3-{name['size']}-{name['tuned']}" if name else config.model_name
    block = f"blocks.{place.layer}"
    origin = origin_of(
        files,
        found,
        layer=place.layer if place.name == "resid_post" else None,
        hook_name=f"{block}.{_HOOKS[place.name]}",
        model_name=model,
    )
    if place.name != "transcoder":
        return origin
    return msgspec.structs.replace(origin, hook_name_out=f"{block}.hook_mlp_out")
