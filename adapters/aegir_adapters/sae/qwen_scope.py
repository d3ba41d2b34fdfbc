"""SAEs as the Qwen team publishes them (Qwen-Scope, arXiv:2605.11887): `layer{n}.sae.pt`.

One file for each decoder layer, of a dictionary `W_enc` [n_latents, d_model], `W_dec` [d_model,
n_latents], `b_enc` and `b_dec`. There is no configuration: how many latents a token keeps, and the
model, stand in the name of the repository, as in `SAE-Res-Qwen3-8B-Base-W64K-L0_50`. The model card
gives the encoder, ``topk(x @ W_enc.T + b_enc)``: nothing is subtracted from the input.
"""

from __future__ import annotations

import re

import torch

from aegir_adapters.sae.families import Found, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.reading import TensorFile, read_tensors, told_by_name
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.weights import Weights
from aegir_stream.errors import SAEFormatError

_FILE = re.compile(r"(?:.*/)?layer(\d+)\.sae\.pt")
_NAME = re.compile(r"SAE-Res-(?P<model>[\w.-]+?)-W(?P<width>\d+)K-L0_(?P<k>\d+)")


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the SAE of a layer; `None` where no file is named `layer{n}.sae.pt`."""
    matches = [(name, _FILE.fullmatch(name)) for name in files.names]
    candidates = [Found(weights=name, layer=int(match[1])) for name, match in matches if match]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> TopKSAE:
    """Return the SAE; errors as in `Family.read`."""
    name = told_by_name(_NAME, files, found.weights)
    if name is None:
        raise SAEFormatError(
            "Expected a folder named as the repository is, such as"
            f" SAE-Res-Qwen3-8B-Base-W64K-L0_50, got none - in {files.located(found.weights)}",
            hint="How many latents a token keeps stands nowhere else: keep the repository's name,"
            " or pass repository=",
        )
    held = read_tensors(files.path(found.weights), device=device)
    return TopKSAE(
        _weights(held, n_latents=int(name["width"]) * 1024),
        k=int(name["k"]),
        apply_b_dec_to_input=False,
        origin=origin_of(
            files,
            found,
            layer=found.layer,
            hook_name=f"blocks.{found.layer}.hook_resid_post",
            model_name=f"Qwen/{name['model']}",
        ),
    )


def _weights(held: TensorFile, *, n_latents: int) -> Weights:
    held.expect(["W_enc", "W_dec", "b_enc", "b_dec"])
    d_model = held.length("b_dec")
    held.check_orientation(d_model, n_latents)
    return Weights(
        w_enc=held.take("W_enc", (n_latents, d_model)).T,
        b_enc=held.take("b_enc", (n_latents,)),
        w_dec=held.take("W_dec", (d_model, n_latents)).T,
        b_dec=held.take("b_dec", (d_model,)),
    )
