"""What a request asks for, as text that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aegir_adapters.patching.recording import About, AboutPair
from aegir_adapters.patching.request import PatchSweepRequest, PromptPair, TokensRequest
from aegir_adapters.patching.service import PatchService
from aegir_stream.sweep_events import SweptLatent

__all__ = ["worded"]


def worded(
    request: PatchSweepRequest,
    service: PatchService,
    *,
    model: str,
    layers: Sequence[int] = (),
    **named: Any,
) -> About:
    """Return what a request asks for, its prompts token by token.

    Args:
        request: what is swept; the service has not refused it.
        service: takes the prompts apart.
        model: what the model is called.
        layers: the swept layers.
        **named: further fields of `About`.
    """
    pairs = [_pair(pair, request, service) for pair in request.pairs or (request,)]
    latent = None
    if request.latent is not None:
        latent = SweptLatent(layer=layers[0], index=request.latent.index, sae=request.latent.sae)
    fields: Mapping[str, Any] = {"checkpoint": None, "step": None, **named}
    return About(
        model=model,
        tokens=pairs[0].tokens,
        clean_tokens=pairs[0].clean_tokens,
        answer=pairs[0].answer,
        foil=pairs[0].foil,
        latent=latent,
        pairs=tuple(pairs) if request.pairs else (),
        **fields,
    )


def _pair(
    pair: PatchSweepRequest | PromptPair, request: PatchSweepRequest, service: PatchService
) -> AboutPair:
    clean = pair.clean_prompt
    return AboutPair(
        tokens=_tokens(pair.prompt, service),
        clean_tokens=None if clean is None else _tokens(clean, service),
        answer=_target("answer", pair, service) or _target("answer", request, service),
        foil=_target("foil", pair, service) or _target("foil", request, service),
    )


def _tokens(prompt: Any, service: PatchService) -> tuple[str, ...]:
    told = service.tokens(TokensRequest(prompt=prompt))
    return told.tokens or tuple(map(str, told.token_ids))


def _target(kind: str, asked: PatchSweepRequest | PromptPair, service: PatchService) -> str | None:
    """Return an answer or a foil as it was given, or as its tokens spell it."""
    token_id = getattr(asked, f"{kind}_token_id")
    token = getattr(asked, f"{kind}_token")
    text = getattr(asked, kind)
    given = (token_id,) if token_id is not None else token if token is not None else text
    if given is None or isinstance(given, str):
        return given
    tokenizer = service.model.tokenizer
    return " ".join(map(str, given)) if tokenizer is None else str(tokenizer.decode(list(given)))
