"""Latents and SAEs as they are typed: `2:101`, and `2=path`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from aegir_stream.errors import OptionError

__all__ = ["LatentPlace", "read_latent", "read_saes", "sae_name"]

_LATENT = re.compile(r"(\d{1,6}):(\d{1,9})")


class LatentPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A latent of the SAE at a layer."""

    layer: int
    index: int


def read_latent(text: str) -> LatentPlace:
    """Return the latent that a text such as `2:101` names.

    Raises:
        OptionError: it names none.
    """
    found = _LATENT.fullmatch(text.strip())
    if found is None:
        raise OptionError(
            f"Expected `latent` to be LAYER:INDEX, got `{text}`",
            hint="For example --latent 2:101; aegir features RUN ranks the latents of a run",
        )
    return LatentPlace(layer=int(found[1]), index=int(found[2]))


def read_saes(given: Iterable[str]) -> dict[int, str]:
    """Return the SAEs that are named as `LAYER=PATH`, by layer.

    Raises:
        OptionError: one is not named so, or a layer has two.
    """
    places: dict[int, str] = {}
    for one in given:
        layer, equals, path = one.partition("=")
        if not equals or not path or not layer.strip().isdecimal():
            raise OptionError(
                f"Expected `sae` to be LAYER=PATH, got `{one}`",
                hint="For example --sae 2=runs/demo-1/sae/layer-2",
            )
        if int(layer) in places:
            raise OptionError(
                f"Expected one `sae` for layer {int(layer)}, got `{places[int(layer)]}` and "
                f"`{path}`",
                hint="Leave one of them out",
            )
        places[int(layer)] = path
    return places


def sae_name(layer: int) -> str:
    """Return the name under which requests know the SAE of a layer."""
    return f"layer-{layer}"
