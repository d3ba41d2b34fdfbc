"""The prompt pairs of a request, each as a request of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from aegir_adapters.patching.refusals import RequestError
from aegir_adapters.patching.request import PatchSweepRequest
from aegir_adapters.patching.request_parts import PromptPair

__all__ = ["PairRequest", "pair_requests"]

_OWN = ("prompt", "source_run", "clean_prompt", "positions", "alignment")
"""Fields that each pair has for itself."""

_TARGETS = (
    ("answer_token", "answer_token_id", "answer"),
    ("foil_token", "foil_token_id", "foil"),
)
_INHERITED = (*_TARGETS, ("groups",))
"""Fields that a pair has of the request if it has none of those beside them."""


class PairRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt pair.

    Attributes:
        request: what is asked for, as if there was no other pair.
        owner: the field that it stands in; `None` where there are no several pairs.
        own: fields that are the pair's, and not those of the request that it is one of.
    """

    request: PatchSweepRequest
    owner: str | None = None
    own: frozenset[str] = frozenset()

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Let what the block refuses name the pair, unless it is a field of the whole request."""
        try:
            yield
        except RequestError as error:
            if self.owner is None or error.field.partition(".")[0] not in self.own:
                raise
            raise error.within(self.owner) from error


def pair_requests(request: PatchSweepRequest) -> tuple[PairRequest, ...]:
    """Return what is asked for of each pair.

    Raises:
        RequestError: there is no pair, or a field beside them that each has for itself.
    """
    if request.pairs is None:
        if request.prompt is None:
            raise RequestError("prompt", None, allowed="text or a list of token ids")
        return (PairRequest(request=request),)
    if not request.pairs:
        raise RequestError("pairs", [], allowed="non-empty when provided")
    defaults = {field.name: field.default for field in msgspec.structs.fields(PatchSweepRequest)}
    for name in _OWN:
        value = getattr(request, name)
        if value != defaults[name]:
            raise RequestError(name, value, allowed="left out beside `pairs`, which have their own")
    return tuple(_one(request, pair, index) for index, pair in enumerate(request.pairs))


def _one(request: PatchSweepRequest, pair: PromptPair, index: int) -> PairRequest:
    fields: dict[str, Any] = {name: getattr(pair, name) for name in _OWN}
    own = {*PromptPair.__struct_fields__}
    for names in _INHERITED:
        mine = {name: getattr(pair, name) for name in names}
        if any(value is not None for value in mine.values()):
            fields |= mine
        elif names != ("groups",) and any(getattr(request, name) is not None for name in names):
            # A token is refused for what it is; a span of a group for what the prompt lacks.
            own -= {*names}
    single = msgspec.structs.replace(request, pairs=None, **fields)
    return PairRequest(request=single, owner=f"pairs[{index}]", own=frozenset(own))
