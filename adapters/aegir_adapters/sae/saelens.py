"""SAEs as SAELens keeps them: `cfg.json` beside `sae_weights.safetensors`.

There is no format of our own. SAELens v6 keeps every tensor and option that defines its
architectures, exactly, and its `metadata` is open to further keys; so what is saved here opens in
SAELens and its neighbours alike. Files of older versions are read as SAELens itself reads them.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from aegir_adapters.sae.autoencoder import Shared, SparseAutoencoder
from aegir_adapters.sae.families import Found, layer_in, the_one
from aegir_adapters.sae.files import SAEFiles, is_weights
from aegir_adapters.sae.gated import GatedSAE
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.normalisation import Normalisation
from aegir_adapters.sae.reading import TensorFile, read_tensors
from aegir_adapters.sae.saelens_config import (
    ARCHITECTURES,
    FORMAT_VERSION,
    Config,
    Metadata,
    layer_of,
    one_of,
    output_layer_of,
    read_config,
)
from aegir_adapters.sae.standard import StandardSAE
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.transcoding import Transcoding
from aegir_adapters.sae.weights import Origin, Weights
from aegir_stream.errors import SAEFormatError

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"

_PUBLISHED = {
    "w_enc": "W_enc",
    "b_enc": "b_enc",
    "w_dec": "W_dec",
    "b_dec": "b_dec",
    "w_skip": "W_skip",
}
_SCALING = "scaling_factor"
"""A tensor of older versions that scales activations before they are decoded."""


def find(files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the SAE of a layer; `None` where no `cfg.json` stands beside weights of SAELens.

    A configuration is read only where the name of its folder leaves it a chance.
    """
    folders = [name.removesuffix(CONFIG_NAME) for name in files.names if _is_config(name)]
    folders = [folder for folder in folders if folder + WEIGHTS_NAME in files.names]
    _check_whole(files)
    if layer is None and len(folders) > 1:
        return the_one([_unread(folder) for folder in folders], files, layer=None)
    likely = [folder for folder in folders if layer is None or _may_be_of(folder, layer)]
    if folders and not likely:
        return the_one([_unread(folder) for folder in folders], files, layer=layer)
    return the_one([_read_for(files, folder) for folder in likely], files, layer=layer)


def read(files: SAEFiles, found: Found, *, device: str | torch.device) -> SparseAutoencoder:
    """Return the SAE; errors as in `Family.read`."""
    config = read_config(files.path(found.config or CONFIG_NAME))
    held = read_tensors(files.path(found.weights), device=device)
    tensors = _checked(held, config)
    origin = _origin(config.metadata, files, found)
    return _build(config, tensors, _shared(config, tensors, found.scale, origin))


def save_sae(sae: SparseAutoencoder, directory: str | os.PathLike[str]) -> Path:
    """Write an SAE so that `load_sae` and SAELens v6 read it back, bit for bit.

    Each of the two files appears whole or not at all; files of the same name are replaced.

    Args:
        sae: the SAE. Its scale is part of its weights by now.
        directory: made where it does not exist.

    Returns:
        The directory.

    Raises:
        SAEFormatError: SAELens has no such architecture, a TopK transcoder for instance.
    """
    if sae.architecture not in ARCHITECTURES:
        raise SAEFormatError(
            f"Expected architecture {one_of(ARCHITECTURES)}, got `{sae.architecture}`",
            hint="SAELens keeps these only; keep the files that it was loaded from",
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_PUBLISHED.get(name, name): value.cpu() for name, value in sae.tensors().items()}
    partial = folder / f".{WEIGHTS_NAME}.partial"
    save_file(tensors, partial)
    partial.replace(folder / WEIGHTS_NAME)
    partial = folder / f".{CONFIG_NAME}.partial"
    partial.write_bytes(_published_config(sae))
    partial.replace(folder / CONFIG_NAME)
    return folder


def _check_whole(files: SAEFiles) -> None:
    """Make sure that a file which nothing else could belong to has its other half."""
    described = any(name.endswith((".json", ".yaml", ".yml")) for name in files.names)
    weighed = any(is_weights(name) for name in files.names)
    lacks = {CONFIG_NAME: WEIGHTS_NAME in files.names and not described}
    lacks[WEIGHTS_NAME] = CONFIG_NAME in files.names and not weighed
    for name, is_lacking in lacks.items():
        if is_lacking:
            raise SAEFormatError(
                f"Expected {CONFIG_NAME} and {WEIGHTS_NAME}, got no {name} - in {files.name}",
                hint="Give the directory of one SAE in the format of SAELens; without its"
                " configuration neither architecture nor orientation of the weights is known",
            )


def _is_config(name: str) -> bool:
    return PurePosixPath(name).name == CONFIG_NAME


def _unread(folder: str) -> Found:
    return Found(weights=folder + WEIGHTS_NAME, config=folder + CONFIG_NAME, layer=layer_in(folder))


def _may_be_of(folder: str, layer: int) -> bool:
    """Return whether a folder's name allows a layer; the input of the next one is its output."""
    return layer_in(folder) in {None, layer, layer + 1}


def _read_for(files: SAEFiles, folder: str) -> Found:
    unread = _unread(folder)
    config = read_config(files.path(folder + CONFIG_NAME))
    layer = layer_of(config.metadata.hook_name)
    missing = (
        "normalisation `expected_average_only_in` needs a factor that is not in the file"
        if config.normalize_activations == "expected_average_only_in"
        else ""
    )
    return msgspec.structs.replace(
        unread, layer=unread.layer if layer is None else layer, needs_scale=missing
    )


def _checked(held: TensorFile, config: Config) -> dict[str, Tensor]:
    shapes = config.shapes()
    held.expect(shapes, optional=(_SCALING,))
    if _SCALING in held.tensors:
        _check_scaling(held.take(_SCALING, (config.d_sae,)), held.path)
    return {name: held.take(name, shape) for name, shape in shapes.items()}


def _check_scaling(factors: Tensor, path: Path) -> None:
    """Make sure that the factors change nothing, as they do wherever SAELens 6 reads the file."""
    if not torch.allclose(factors, torch.ones_like(factors)):
        raise SAEFormatError(
            f"Expected no `{_SCALING}` but ones, got {tuple(factors.shape)} of"
            f" {factors.min().item():.4g}..{factors.max().item():.4g} - {path}",
            hint="SAELens 6 refuses it too: it comes of a finetuning that is not part of the"
            " format any more; choose the SAE from before it",
        )


def _shared(config: Config, tensors: dict[str, Tensor], scale: float, origin: Origin) -> Shared:
    stated = config.normalize_activations
    rowwise: dict[str, Normalisation] = {kind: kind for kind in get_args(Normalisation)}
    return Shared(
        apply_b_dec_to_input=config.apply_b_dec_to_input,
        normalize_activations=rowwise.get(stated, "none"),
        transcoding=Transcoding(w_skip=tensors.get("W_skip")) if config.is_transcoder else None,
        scale=scale,
        origin=origin,
    )


def _build(config: Config, tensors: dict[str, Tensor], shared: Shared) -> SparseAutoencoder:
    weights = Weights(
        w_enc=tensors["W_enc"],
        b_enc=tensors["b_gate" if config.architecture == "gated" else "b_enc"],
        w_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
    )
    if config.architecture == "topk" and isinstance(config.k, int):
        rescale = config.rescale_acts_by_decoder_norm is True
        return TopKSAE(weights, k=config.k, rescale_acts_by_decoder_norm=rescale, **shared)
    if "threshold" in tensors:
        return JumpReLUSAE(weights, threshold=tensors["threshold"], **shared)
    if "r_mag" in tensors:
        return GatedSAE(weights, b_mag=tensors["b_mag"], r_mag=tensors["r_mag"], **shared)
    return StandardSAE(weights, **shared)


def _origin(metadata: Metadata, files: SAEFiles, found: Found) -> Origin:
    return Origin(
        layer=output_layer_of(metadata.hook_name),
        hook_name=metadata.hook_name,
        hook_name_out=metadata.hook_name_out,
        model_name=metadata.model_name,
        repository=files.repository or metadata.repository,
        revision=files.revision or metadata.revision,
        path=files.location(found.weights).removesuffix(WEIGHTS_NAME).rstrip("/"),
    )


def _published_config(sae: SparseAutoencoder) -> bytes:
    origin = sae.origin
    residual_hook = None if origin.layer is None else f"blocks.{origin.layer}.hook_resid_post"
    metadata = Metadata(
        sae_lens_version=FORMAT_VERSION,
        model_name=origin.model_name,
        hook_name=origin.hook_name or residual_hook,
        hook_name_out=origin.hook_name_out,
        repository=origin.repository,
        revision=origin.revision,
    )
    stated: dict[str, Any] = sae.options()
    config = Config(
        architecture=sae.architecture,
        d_in=sae.d_model,
        d_sae=sae.n_latents,
        metadata=metadata,
        **stated,
    )
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
