"""Load an SAE of any family that is known here, from this disk or the Hugging Face hub."""

from __future__ import annotations

import os

import msgspec
import torch

from aegir_adapters.sae import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    qwen_scope,
    saelens,
    sparsify,
)
from aegir_adapters.sae.autoencoder import SparseAutoencoder
from aegir_adapters.sae.families import Family, Found
from aegir_adapters.sae.files import SAEFiles, listed, open_files
from aegir_stream.errors import SAEFormatError, ShapeError

FAMILIES: tuple[Family, ...] = (
    saelens,
    qwen_scope,
    gemma_scope,
    gemma_scope_2,
    sparsify,
    dictionary_learning,
    llama_scope,
    goodfire,
    circuit_tracer,
)
"""Asked in turn; exactly one must know the files."""


def load_sae(
    path_or_repo: str | os.PathLike[str],
    *,
    layer: int | None = None,
    device: str | torch.device = "cpu",
    scale: float | None = None,
    repository: str | None = None,
    revision: str | None = None,
) -> SparseAutoencoder:
    """Read an SAE in whatever published format it is.

    Nothing in the files is executed. What exists on this disk is read from there; else a repository
    on the Hugging Face hub is asked for it, or its local cache under `HF_HUB_OFFLINE`.

    Args:
        path_or_repo: directory, file, or `owner/name` on the hub with a folder or file behind it.
        layer: which SAE, where files hold one for each of several layers.
        device: where its tensors shall lie.
        scale: for files that normalise by a factor which they do not hold: what inputs are divided
            by, mean ``||x|| / sqrt(d_model)``.
        repository: of files on this disk, where they were published, for
            `SparseAutoencoder.identity`.
        revision: branch, tag or commit on the hub; of files on this disk, where they come from.

    Raises:
        SAEFormatError: no format or several fit, more than one SAE is meant, a file is missing or
            damaged, lacks a key or tensor, holds a tensor of another shape or with values that are
            not finite, asks for what is not built here, or the hub cannot be reached.
        MissingExtraError: a repository is named and `huggingface_hub` is not installed.
    """
    files = open_files(path_or_repo, repository=repository, revision=revision)
    family, found = _one_of_a_family(files, layer)
    found = msgspec.structs.replace(found, scale=_scale(files, found, scale))
    try:
        return family.read(files, found, device=device)
    except (ShapeError, SAEFormatError) as error:
        if files.name in str(error):
            raise
        where = files.located(found.weights)
        raise SAEFormatError(f"{error.args[0]} - in {where}", hint=error.hint) from error


def find_sae(
    path_or_repo: str | os.PathLike[str],
    *,
    layer: int | None = None,
    repository: str | None = None,
    revision: str | None = None,
) -> Found:
    """Look for an SAE as `load_sae` does, without reading its tensors.

    Args:
        path_or_repo: see `load_sae`, like the others.
        layer: which SAE, where files hold several.
        repository: where files on this disk were published.
        revision: branch, tag or commit.

    Raises:
        SAEFormatError: no format or several fit, or more than one SAE is meant.
        MissingExtraError: as in `load_sae`.
    """
    files = open_files(path_or_repo, repository=repository, revision=revision)
    return _one_of_a_family(files, layer)[1]


def _one_of_a_family(files: SAEFiles, layer: int | None) -> tuple[Family, Found]:
    asked = [(family, family.find(files, layer=layer)) for family in FAMILIES]
    known = [(family, found) for family, found in asked if found is not None]
    if len(known) == 1:
        return known[0]
    if known:
        names = listed([f"{_named(family)}: {found.weights}" for family, found in known])
        raise SAEFormatError(
            f"Expected files of one format, got {names} - in {files.name}",
            hint="Name the file itself, or a directory that holds that SAE alone",
        )
    raise SAEFormatError(
        f"Expected an SAE in a known format, got {listed(files.names)} - in {files.name}",
        hint=f"Known are {listed([_named(family) for family in FAMILIES], most=20)}; without its"
        " configuration neither architecture nor orientation of weights is known",
    )


def _named(family: Family) -> str:
    return family.__name__.rpartition(".")[2]


def _scale(files: SAEFiles, found: Found, scale: float | None) -> float:
    if scale is None and found.needs_scale:
        raise SAEFormatError(
            f"Expected a `scale`: {found.needs_scale} ({files.located(found.weights)})",
            hint="Pass scale=x.norm(dim=1).mean().item() / x.shape[1]**0.5 over activations x"
            " of the model that it was trained on",
        )
    if scale is not None and not found.needs_scale:
        raise SAEFormatError(
            f"Expected no `scale` for an SAE whose files say how its inputs are normalised, got"
            f" {scale} - {files.located(found.weights)}",
            hint="Leave `scale` out: the weights fit the activations as they are",
        )
    return 1.0 if scale is None else scale
