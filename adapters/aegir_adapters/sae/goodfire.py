"""SAEs as Goodfire publishes them: one file, as in `Llama-3.1-8B-Instruct-SAE-l19.pth`.

It holds two linear layers, `encoder_linear` and `decoder_linear`; the code is the relu of the
first, and nothing is subtracted from the input. The file that qresearch publishes for
DeepSeek-R1-Distill-Llama-8B is the same but for the names `encoder` and `decoder`.
"""

from __future__ import annotations

import re

import torch

from aegir_adapters.sae.families import Found, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.reading import linear_layers, read_tensors
from aegir_adapters.sae.standard import StandardSAE

_FILE = re.compile(r"(?:.*/)?(?P<model>[\w.-]+)-SAE-l(?P<layer>\d+)\.pth?")
_PUBLISHERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the SAE of a layer; `None` where no file is named `<model>-SAE-l<layer>.pt`."""
    matches = [(name, _FILE.fullmatch(name)) for name in files.names]
    candidates = [
        Found(weights=name, layer=int(match["layer"])) for name, match in matches if match
    ]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> StandardSAE:
    """Return the SAE; errors as in `Family.read`."""
    held = read_tensors(files.path(found.weights), device=device)
    suffix = "_linear" if "encoder_linear.weight" in held.tensors else ""
    encoder, decoder = f"encoder{suffix}", f"decoder{suffix}"
    held.expect([f"{layer}.{kind}" for layer in (encoder, decoder) for kind in ("weight", "bias")])
    return StandardSAE(
        linear_layers(held, encoder=encoder, decoder=decoder),
        apply_b_dec_to_input=False,
        origin=origin_of(
            files,
            found,
            layer=found.layer,
            hook_name=f"blocks.{found.layer}.hook_resid_post",
            model_name=_model(found.weights),
        ),
    )


def _model(name: str) -> str:
    match = _FILE.fullmatch(name)
    model = match["model"] if match else name
    publisher = _PUBLISHERS.get(model.partition("-")[0])
    return f"{publisher}/{model}" if publisher else model
