"""SAEs as directories in the format of SAELens v6: `cfg.json` beside `sae_weights.safetensors`.

There is no format of our own. SAELens v6 keeps every tensor and option that defines the three
architectures, exactly, and its `metadata` is open to further keys; so what is saved here opens in
SAELens and its neighbours alike.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegir_adapters.sae.autoencoder import SparseAutoencoder
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.saelens_config import (
    FORMAT_VERSION,
    Config,
    Metadata,
    check_scale,
    one_of,
    read_config,
)
from aegir_adapters.sae.standard import StandardSAE
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.weights import ORIENTATION, Origin, Weights
from aegir_stream.errors import SAEFormatError, ShapeError

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"

_PUBLISHED = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec"}
_RESIDUAL_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_post")


def save_sae(sae: SparseAutoencoder, directory: str | os.PathLike[str]) -> Path:
    """Write an SAE so that `load_sae` and SAELens v6 read it back, bit for bit.

    Each of the two files appears whole or not at all; files of the same name are replaced.

    Args:
        sae: the SAE. Its scale is part of its weights by now.
        directory: made where it does not exist.

    Returns:
        The directory.
    """
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


def load_sae(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    scale: float | None = None,
    repository: str | None = None,
    revision: str | None = None,
) -> SparseAutoencoder:
    """Read an SAE that SAELens v6 or `save_sae` wrote.

    Only safetensors and JSON are read, so nothing in the files is executed.

    Args:
        path: directory with `cfg.json` and `sae_weights.safetensors`, or one of these files.
        device: where its tensors shall lie.
        scale: for files that normalise by `expected_average_only_in`, whose factor is not in the
            file: what inputs are divided by, mean ``||x|| / sqrt(d_model)``.
        repository: where it was published, for `SparseAutoencoder.identity`.
        revision: commit of that repository.

    Raises:
        SAEFormatError: a file is missing or damaged, lacks a key or tensor, holds a tensor of
            another shape or with values that are not finite, or asks for what is not built here.
    """
    folder = _folder(Path(path))
    config = read_config(folder / CONFIG_NAME)
    scale = check_scale(config, scale, path=folder / CONFIG_NAME)
    tensors = _read_tensors(folder / WEIGHTS_NAME, config, device)
    origin = _origin(config.metadata, folder, repository=repository, revision=revision)
    try:
        return _build(config, tensors, scale=scale, origin=origin)
    except ShapeError as error:
        raise SAEFormatError(f"{error.args[0]} - in {folder}", hint=error.hint) from error


def _folder(path: Path) -> Path:
    folder = path.parent if path.name in {CONFIG_NAME, WEIGHTS_NAME} else path
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise SAEFormatError(
                f"Expected {CONFIG_NAME} and {WEIGHTS_NAME}, got no {name} - in {folder}",
                hint="Give the directory of one SAE in the format of SAELens v6; without its"
                " configuration neither architecture nor orientation of the weights is known",
            )
    return folder


def _read_tensors(path: Path, config: Config, device: str | torch.device) -> dict[str, Tensor]:
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise SAEFormatError(
            f"Expected safetensors, got a file that does not parse ({error}) - {path}",
            hint="Fetch it again: it is damaged, incomplete or in another format",
        ) from error
    shapes = config.shapes()
    if set(tensors) != set(shapes):
        expected, got = (one_of(names, joint="and") for names in (shapes, sorted(tensors)))
        raise SAEFormatError(
            f"Expected tensors {expected}, got {got} - {path}",
            hint=f"An SAE of architecture `{config.architecture}` holds these and no others",
        )
    for name, shape in shapes.items():
        _check_shape(name, tensors[name], shape, path)
        _check_values(name, tensors[name], path)
    return tensors


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], path: Path) -> None:
    got = tuple(tensor.shape)
    if got != shape:
        turned = ". This one is transposed" if got == shape[::-1] else ""
        raise SAEFormatError(
            f"Expected `{name}` of shape {shape}, got {got} - {path}",
            hint=f"{CONFIG_NAME} states d_in and d_sae. {ORIENTATION}{turned}",
        )


def _check_values(name: str, tensor: Tensor, path: Path) -> None:
    unusable = int((~tensor.isfinite()).sum())
    if unusable:
        raise SAEFormatError(
            f"Expected finite values in `{name}`, got {unusable} of {tensor.numel()}"
            f" that are NaN or infinite - {path}",
            hint="Fetch the file again, or choose an SAE whose training did not diverge",
        )


def _build(
    config: Config, tensors: dict[str, Tensor], *, scale: float, origin: Origin
) -> SparseAutoencoder:
    weights = Weights(**{ours: tensors[theirs] for ours, theirs in _PUBLISHED.items()})
    centred = config.apply_b_dec_to_input
    if config.architecture == "topk" and isinstance(config.k, int):
        return TopKSAE(
            weights,
            k=config.k,
            rescale_acts_by_decoder_norm=config.rescale_acts_by_decoder_norm is True,
            apply_b_dec_to_input=centred,
            scale=scale,
            origin=origin,
        )
    if config.architecture == "jumprelu":
        return JumpReLUSAE(
            weights,
            threshold=tensors["threshold"],
            apply_b_dec_to_input=centred,
            scale=scale,
            origin=origin,
        )
    return StandardSAE(weights, apply_b_dec_to_input=centred, scale=scale, origin=origin)


def _origin(
    metadata: Metadata, folder: Path, *, repository: str | None, revision: str | None
) -> Origin:
    hook = _RESIDUAL_HOOK.fullmatch(metadata.hook_name or "")
    return Origin(
        layer=int(hook[1]) if hook else None,
        hook_name=metadata.hook_name,
        model_name=metadata.model_name,
        repository=repository or metadata.repository,
        revision=revision or metadata.revision,
        path=str(folder),
    )


def _published_config(sae: SparseAutoencoder) -> bytes:
    origin = sae.origin
    residual_hook = None if origin.layer is None else f"blocks.{origin.layer}.hook_resid_post"
    metadata = Metadata(
        sae_lens_version=FORMAT_VERSION,
        model_name=origin.model_name,
        hook_name=origin.hook_name or residual_hook,
        repository=origin.repository,
        revision=origin.revision,
    )
    config = Config(
        architecture=sae.architecture,
        d_in=sae.d_model,
        d_sae=sae.n_latents,
        metadata=metadata,
        **sae.options(),
    )
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
