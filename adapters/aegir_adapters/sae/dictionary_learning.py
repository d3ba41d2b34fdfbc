"""SAEs as the library dictionary_learning saves them: `ae.pt` beside `config.json`.

`trainer.dict_class` in the configuration says which class they are of; what each computes is what
that class computes at inference. BatchTopK and Matryoshka SAEs, trained to keep the k largest of a
batch, then pass what exceeds one threshold, and a Matryoshka's nested groups play no part. The
library brings the decoder rows of an `AutoEncoder` to norm 1 when it loads it, and so does this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.sae.autoencoder import SparseAutoencoder
from aegir_adapters.sae.families import Found, layer_in, origin_of, the_one
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.gated import GatedSAE
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.reading import (
    TensorFile,
    description,
    linear_layers,
    read_json,
    read_tensors,
)
from aegir_adapters.sae.saelens_config import one_of
from aegir_adapters.sae.standard import StandardSAE
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.weights import Origin, Weights
from aegir_stream.errors import SAEFormatError

_RESIDUAL = re.compile(r"resid_post_layer_(\d+)")


class _Trainer(Struct, frozen=True):
    """What of the configuration decides on the output, and where the SAE came from."""

    dict_class: str
    activation_dim: int
    dict_size: int
    k: int | None = None
    layer: int | None = None
    lm_name: str | None = None
    submodule_name: str | None = None


class _Config(Struct, frozen=True):
    trainer: _Trainer


class _Files(NamedTuple):
    """The configuration and the tensors of one SAE, and where both lie."""

    trainer: _Trainer
    held: TensorFile
    config: Path
    origin: Origin

    @property
    def shape(self) -> tuple[int, int]:
        """Input width and number of latents, as the configuration states them."""
        return self.trainer.activation_dim, self.trainer.dict_size

    def matrices(self) -> Weights:
        """Return the weights of the classes that hold matrices instead of linear layers."""
        d_model, n_latents = self.shape
        return Weights(
            w_enc=self.held.take("W_enc", (d_model, n_latents)),
            b_enc=self.held.take("b_enc", (n_latents,)),
            w_dec=self.held.take("W_dec", (n_latents, d_model)),
            b_dec=self.held.take("b_dec", (d_model,)),
        )


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the SAE of a layer; `None` where no `ae.pt` lies beside a `config.json`."""
    candidates = [
        Found(weights=name, config=config, layer=layer_in(files.located(name)))
        for name in files.names
        if PurePosixPath(name).name == "ae.pt"
        and (config := str(PurePosixPath(name).with_name("config.json"))) in files.names
    ]
    return the_one(candidates, files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> SparseAutoencoder:
    """Return the SAE; errors as in `Family.read`."""
    path = description(files, found)
    trainer = read_json(path, _Config).trainer
    build = _CLASSES.get(trainer.dict_class)
    if build is None:
        raise SAEFormatError(
            f"Expected one of {one_of(_CLASSES)}, got `{trainer.dict_class}`"
            f" - at `$.trainer.dict_class` ({path})",
            hint="Choose an SAE of one of these classes",
        )
    held = read_tensors(files.path(found.weights), device=device)
    return build(_Files(trainer, held, path, _origin(files, found, trainer)))


def _auto_encoder(files: _Files) -> StandardSAE:
    files.held.expect(["encoder.weight", "encoder.bias", "decoder.weight", "bias"])
    weights = linear_layers(files.held, b_dec="bias", shape=files.shape).float32()
    norms = torch.linalg.vector_norm(weights.w_dec, dim=1)
    # The library leaves norms alone that are 1 already, and so the weights stay those of the file.
    if not torch.allclose(norms, torch.ones_like(norms)):
        norms = torch.where(norms == 0, 1.0, norms)
        weights = Weights(
            weights.w_enc * norms,
            weights.b_enc * norms,
            weights.w_dec / norms[:, None],
            weights.b_dec,
        )
    return StandardSAE(weights, origin=files.origin)


def _auto_encoder_new(files: _Files) -> StandardSAE:
    files.held.expect(["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"])
    weights = linear_layers(files.held, shape=files.shape)
    return StandardSAE(weights, apply_b_dec_to_input=False, origin=files.origin)


def _topk(files: _Files) -> TopKSAE:
    files.held.expect(
        ["encoder.weight", "encoder.bias", "decoder.weight", "b_dec"], optional=["k", "threshold"]
    )
    weights = linear_layers(files.held, b_dec="b_dec", shape=files.shape)
    return TopKSAE(weights, k=_k(files), origin=files.origin)


def _batch_topk(files: _Files) -> JumpReLUSAE:
    files.held.expect(
        ["encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "threshold"], optional=["k"]
    )
    weights = linear_layers(files.held, b_dec="b_dec", shape=files.shape)
    return JumpReLUSAE(weights, threshold=_threshold(files), origin=files.origin)


def _matryoshka(files: _Files) -> JumpReLUSAE:
    names = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"]
    files.held.expect(names, optional=["k", "group_sizes"])
    return JumpReLUSAE(files.matrices(), threshold=_threshold(files), origin=files.origin)


def _jumprelu(files: _Files) -> JumpReLUSAE:
    files.held.expect(["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
    return JumpReLUSAE(
        files.matrices(),
        threshold=files.held.take("threshold", files.shape[1:]),
        apply_b_dec_to_input=False,
        origin=files.origin,
    )


def _gated(files: _Files) -> GatedSAE:
    held, (d_model, n_latents) = files.held, files.shape
    biases = ["gate_bias", "mag_bias", "r_mag"]
    held.expect(["encoder.weight", "decoder.weight", "decoder_bias", *biases])
    gate, magnitude, r_mag = (held.take(name, (n_latents,)) for name in biases)
    weights = Weights(
        w_enc=held.take("encoder.weight", (n_latents, d_model)).T,
        b_enc=gate,
        w_dec=held.take("decoder.weight", (d_model, n_latents)).T,
        b_dec=held.take("decoder_bias", (d_model,)),
    )
    return GatedSAE(weights, b_mag=magnitude, r_mag=r_mag, origin=files.origin)


_CLASSES: dict[str, Callable[[_Files], SparseAutoencoder]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}


def _k(files: _Files) -> int:
    stored = files.held.tensors.get("k")
    numbers = {int(k) for k in (stored, files.trainer.k) if k is not None}
    if len(numbers) != 1:
        got = " and ".join(str(k) for k in sorted(numbers)) or "nothing"
        raise SAEFormatError(
            f"Expected one `k`, got {got} - at `k` ({files.held.path}) and `$.trainer.k`"
            f" ({files.config})",
            hint="Write the `k` that it was trained with into its configuration",
        )
    return numbers.pop()


def _threshold(files: _Files) -> Tensor:
    """Return the threshold that stands for the choice over a batch."""
    scalar = files.held.tensors["threshold"].ndim == 0
    threshold = files.held.take("threshold", () if scalar else files.shape[1:]).float()
    if bool((threshold < 0).any()):
        raise SAEFormatError(
            f"Expected a threshold of 0 or more, got {threshold.min().item():g}"
            f" - at `threshold` ({files.held.path})",
            hint="-1 says that it was never set: training ended before threshold_start_step, and"
            " what to keep of a single token is not known",
        )
    return threshold.expand(files.shape[1:])


def _origin(files: SAEFiles, found: Found, trainer: _Trainer) -> Origin:
    """Return where it came from; only its own words make it one of a residual stream."""
    place = trainer.submodule_name or files.located(found.weights)
    residual = _RESIDUAL.search(place)
    return origin_of(
        files,
        found,
        layer=int(residual[1]) if residual else None,
        hook_name=f"blocks.{residual[1]}.hook_resid_post" if residual else trainer.submodule_name,
        model_name=trainer.lm_name,
    )
