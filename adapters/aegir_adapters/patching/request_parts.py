"""What the fields of a request are made of."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aegir_adapters.patching.spans import Span

__all__ = [
    "AlignedPair",
    "Groups",
    "LatentChoice",
    "LayerRange",
    "Places",
    "PromptPair",
    "RequestLimits",
    "SourceKind",
    "Text",
    "VectorRow",
]

Text = str | tuple[int, ...]
"""A prompt or an answer: text, or token ids."""

Places = tuple[int | Span, ...]
"""Positions of a prompt, as numbers and as spans of its text."""

Groups = dict[str, Places]
"""Places that are patched together, by the name of their column; negative numbers count from the
end of the prompt."""

SourceKind = Literal["run", "zero", "mean", "vector", "latent"]


class LayerRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layers from `start` up to but not including `stop`."""

    start: int
    stop: int
    step: Annotated[int, Meta(ge=1)] = 1


class AlignedPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What belongs together: a position or span of the patched prompt, and one of the source's.

    Spans of different length are aligned from their last tokens backwards.
    """

    position: int | Span
    source_position: int | Span


class PromptPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several prompt pairs; fields as in `PatchSweepRequest`.

    Answer, foil and groups that it does not have are those of the request.
    """

    prompt: Text
    source_run: str | None = None
    clean_prompt: Text | None = None
    positions: Places | Literal["all_prompt"] = "all_prompt"
    groups: Groups | None = None
    answer_token: str | None = None
    answer_token_id: int | None = None
    answer: Text | None = None
    foil_token: str | None = None
    foil_token_id: int | None = None
    foil: Text | None = None
    alignment: tuple[AlignedPair, ...] | Literal["auto"] = "auto"


class VectorRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vector for a hook and a layer; for `z` one for each head."""

    hook: str
    layer: int
    values: tuple[float | tuple[float, ...], ...]


class LatentChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A latent of an SAE that the server knows by name."""

    sae: str
    index: Annotated[int, Meta(ge=0)]


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client does not want to go beyond; it cannot raise what the server allows."""

    cells: Annotated[int, Meta(ge=1)] | None = None
    tokens: Annotated[int, Meta(ge=1)] | None = None
    bytes: Annotated[int, Meta(ge=1)] | None = None
