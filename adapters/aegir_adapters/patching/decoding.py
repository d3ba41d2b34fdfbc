"""From JSON or plain values to a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from aegir_adapters.patching.metrics import METRICS
from aegir_adapters.patching.refusals import RequestError, cut
from aegir_adapters.patching.request_parts import PromptPair

__all__ = ["convert_request", "decode_request"]

_SHOWN = 120
_FIELD: Final = re.compile(r" - at `(?:key` in `)?\$\.(?:\[\.\.\.\]\.?)*([a-z_]+)")
_NAMED: Final = re.compile(r"(?:required|unknown) field `([^`]*)`")

T = TypeVar("T")

_ALLOWED: Final[Mapping[str, str]] = {
    "prompt": "text or a list of token ids",
    "layers": 'a list of layers, {start, stop, step} with step >= 1, or "all"',
    "source_run": "the name of a run",
    "clean_prompt": "text or a list of token ids",
    "hook": "the name of a hook",
    "hooks": "a list of names of hooks",
    "positions": 'a list of positions and {span, occurrence}, or "all_prompt"',
    "groups": "lists of positions and {span, occurrence} by names",
    "pairs": "a list of {prompt, clean_prompt, ...}",
    "alpha": "a number",
    "answer_token": "text",
    "answer_token_id": "a token id",
    "answer": "text or a list of token ids",
    "foil_token": "text",
    "foil_token_id": "a token id",
    "foil": "text or a list of token ids",
    "metric": f"one of {', '.join(METRICS)}",
    "metrics": f"a list of some of {', '.join(METRICS)}",
    "method": "exact or attribution",
    "stream": "true or false",
    "keep_source": "true or false",
    "clean_baseline": "a number",
    "alignment": '"auto" or a list of {position, source_position}',
    "source": "one of run, zero, mean, vector, latent",
    "source_runs": "a list of names of runs",
    "vectors": "a list of {hook, layer, values}",
    "latent": "{sae, index}",
    "order": "importance or position",
    "limits": "{cells, tokens, bytes}, each at least 1",
    "logprobs": "a number, at least 1",
    "model": "text",
}


def decode_request(body: bytes, kind: type[T]) -> T:
    """Return the request that a body holds.

    Args:
        body: JSON.
        kind: a request, such as `PatchSweepRequest`.

    Raises:
        RequestError: it is no JSON, or a field is unknown, missing or of the wrong type.
    """
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = body[:_SHOWN].decode(errors="replace")
        raise RequestError("body", text, allowed=f"JSON ({error})") from None
    return convert_request(raw, kind)


def convert_request(raw: Any, kind: type[T]) -> T:
    """Return the request that plain values make up.

    Raises:
        RequestError: a field is unknown, missing or of the wrong type.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _refusal(raw, kind, str(error)) from None


def _refusal(raw: Any, kind: type[Any], message: str) -> RequestError:
    at, named = _FIELD.search(message), _NAMED.search(message)
    if not isinstance(raw, Mapping):
        return RequestError("body", raw, allowed="an object")
    if at is None and named is not None and named[1] not in kind.__struct_fields__:
        fields = ", ".join(kind.__struct_fields__)
        return RequestError(named[1], raw[named[1]], allowed=f"left out; fields are {fields}")
    field = at[1] if at else named[1] if named else "body"
    value = raw.get(field, msgspec.UNSET)
    within = _pair_refusal(value) if field == "pairs" else None
    allowed = _ALLOWED.get(field, "something else")
    return within or RequestError(field, value, allowed=allowed, hint=f"In detail: {cut(message)}")


def _pair_refusal(pairs: Any) -> RequestError | None:
    """Return what is wrong with the first pair that is wrong; `None` if it is none of them."""
    for index, pair in enumerate(pairs if isinstance(pairs, list | tuple) else ()):
        owner = f"pairs[{index}]"
        if not isinstance(pair, Mapping):
            return RequestError(owner, pair, allowed="an object: {prompt, clean_prompt, ...}")
        try:
            msgspec.convert(pair, PromptPair)
        except msgspec.ValidationError as error:
            return _refusal(pair, PromptPair, str(error)).within(owner)
    return None
