"""SAEs of the first Gemma Scope (arXiv:2408.05147): `layer_20/width_16k/average_l0_71/params.npz`.

The arrays `W_enc` [d, n], `W_dec` [n, d], `b_enc`, `b_dec` and `threshold` make a JumpReLU SAE that
subtracts nothing from its input. What it reads stands in the name of the repository alone, as in
`gemma-scope-2b-pt-res`: `res` the output of a layer, `mlp` and `att` what is inside it,
`transcoders` the MLP from its input to its output.
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath

import msgspec
import torch

from aegir_adapters.sae.families import Found, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.reading import TensorFile, read_tensors, told_by_name
from aegir_adapters.sae.transcoding import Transcoding
from aegir_adapters.sae.weights import Origin, Weights

TENSORS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")

_NAME = re.compile(
    r"gemma-scope-(?P<size>\d+b)-(?P<tuned>pt|it)-(?P<place>res|mlp|att|transcoders)"
)
_LAYER = re.compile(r"/layer_(\d+)/")
_EMBEDDING = re.compile(r"/embedding/")
_HOOKS = {
    "res": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "att": "attn.hook_z",
    "transcoders": "ln2.hook_normalized",
}


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the SAE of a layer; `None` where no file is named `params.npz`."""
    candidates = [
        Found(weights=name, layer=_layer(files, name))
        for name in files.names
        if PurePosixPath(name).name == "params.npz"
    ]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> JumpReLUSAE:
    """Return the SAE; errors as in `Family.read`."""
    held = read_tensors(files.path(found.weights), device=device)
    # Some files have `w_enc` and some `W_enc`.
    held = TensorFile(held.path, {name.lower(): array for name, array in held.tensors.items()})
    held.expect(TENSORS)
    weights = weights_of(held)
    d_model, n_latents = weights.w_enc.shape
    embedding = told_by_name(_EMBEDDING, files, found.weights) is not None
    name = told_by_name(_NAME, files, found.weights)
    transcodes = name is not None and name["place"] == "transcoders"
    return JumpReLUSAE(
        weights,
        threshold=held.take("threshold", (n_latents,)),
        apply_b_dec_to_input=False,
        # Gemma multiplies embeddings by sqrt(d) before its first layer; these were trained before.
        scale=math.sqrt(d_model) if embedding else 1.0,
        transcoding=Transcoding() if transcodes else None,
        origin=_origin(files, found, name, embedding=embedding),
    )


def weights_of(held: TensorFile) -> Weights:
    """Return the weights of a file that has them by these names, for want of a configuration.

    Raises:
        SAEFormatError: they do not fit together, or their orientation does not show.
    """
    d_model, n_latents = held.length("b_dec"), held.length("b_enc")
    held.check_orientation(d_model, n_latents)
    return Weights(
        w_enc=held.take("w_enc", (d_model, n_latents)),
        b_enc=held.take("b_enc", (n_latents,)),
        w_dec=held.take("w_dec", (n_latents, d_model)),
        b_dec=held.take("b_dec", (d_model,)),
    )


def _layer(files: SAEFiles, name: str) -> int | None:
    match = told_by_name(_LAYER, files, name)
    return int(match[1]) if match else None


def _origin(
    files: SAEFiles, found: Found, name: re.Match[str] | None, *, embedding: bool
) -> Origin:
    if name is None:
        return origin_of(files, found)
    model = f"google/gemma-2-{name['size']}{'-it' if name['tuned'] == 'it' else ''}"
    if embedding:
        return origin_of(files, found, hook_name="hook_embed", model_name=model)
    place, block = name["place"], f"blocks.{found.layer}"
    origin = origin_of(
        files,
        found,
        layer=found.layer if place == "res" else None,
        hook_name=f"{block}.{_HOOKS[place]}",
        model_name=model,
    )
    if place != "transcoders":
        return origin
    return msgspec.structs.replace(origin, hook_name_out=f"{block}.hook_mlp_out")
