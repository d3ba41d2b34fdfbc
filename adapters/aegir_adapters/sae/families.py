"""The families of files that an SAE may be published as, and how one of them is chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from msgspec import Struct

from aegir_adapters.sae.autoencoder import SparseAutoencoder
from aegir_adapters.sae.files import SAEFiles, listed
from aegir_adapters.sae.weights import Origin
from aegir_stream.errors import SAEFormatError

_LAYER = re.compile(r"(?:^|[/._-])(?:layers?|blocks)[._-]?(\d+)(?=$|[/._-])", re.IGNORECASE)
"""Not a bare `l`: `average_l0_71` says how many latents are active."""


class Found(Struct, frozen=True, kw_only=True):
    """One SAE among files, found by their names and descriptions.

    Attributes:
        weights: name of the file with its tensors.
        config: name of the file that describes it, where its family has one.
        layer: decoder layer it belongs to, where that is known.
        needs_scale: what its files lack: why a factor that inputs are divided by must be given.
            Empty if none must.
        scale: that factor; `read` hands it to the SAE.
    """

    weights: str
    config: str | None = None
    layer: int | None = None
    needs_scale: str = ""
    scale: float = 1.0


class Family(Protocol):
    """A module that knows one way to publish SAEs."""

    __name__: str

    def find(self, files: SAEFiles, *, layer: int | None) -> Found | None:
        """Return the SAE of a layer, `None` if the files are of another family.

        Looks at names and small descriptions only.

        Raises:
            SAEFormatError: several would do, or a description is broken.
        """
        ...

    def read(
        self, files: SAEFiles, found: Found, *, device: str | torch.device
    ) -> SparseAutoencoder:
        """Return the SAE that `find` found.

        Raises:
            SAEFormatError: its files are damaged, do not fit together, or ask for what is not built
                here.
            ShapeError: its tensors do not fit together.
        """
        ...


def layer_in(name: str) -> int | None:
    """Return the one layer that a path names, as in `layer_12`, `blocks.12` or `layers.12.mlp`."""
    layers = set(_LAYER.findall(name))
    return int(layers.pop()) if len(layers) == 1 else None


def the_one(candidates: Sequence[Found], files: SAEFiles, *, layer: int | None) -> Found | None:
    """Return the only candidate of a layer, `None` if there are no candidates at all.

    A candidate whose layer is not known is taken for every layer, if it is the only one.

    Raises:
        SAEFormatError: none is of that layer, or several are; names them.
    """
    if len(candidates) == 1 and candidates[0].layer is None:
        return candidates[0]
    chosen = [found for found in candidates if layer is None or found.layer == layer]
    if len(chosen) == 1 or not candidates:
        return chosen[0] if chosen else None
    names = listed([found.weights for found in chosen or candidates])
    if not chosen:
        raise SAEFormatError(
            f"Expected an SAE of layer {layer}, got {names} - in {files.name}",
            hint="Choose a layer that is there, or name the folder or file itself",
        )
    remedy = "Name one of these files" if layer is not None else "Pass layer=, or name one of them"
    raise SAEFormatError(
        f"Expected one SAE, got {len(chosen)}: {names} - in {files.name}",
        hint=f"{remedy}, as in load_sae({files.located(_handle(chosen[0]))!r})",
    )


def _handle(found: Found) -> str:
    """Return what names one SAE: its file, or the folder above where a description lies apart."""
    above, inside = ((name or "").rpartition("/")[0] for name in (found.config, found.weights))
    return found.weights if found.config is None or above == inside else above


def origin_of(
    files: SAEFiles,
    found: Found,
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    model_name: str | None = None,
) -> Origin:
    """Return where an SAE came from; `layer` only where it reads a layer's output."""
    return Origin(
        layer=layer,
        hook_name=hook_name,
        model_name=model_name,
        repository=files.repository,
        revision=files.revision,
        path=files.location(found.weights),
    )
