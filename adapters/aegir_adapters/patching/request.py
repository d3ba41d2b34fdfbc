"""What `POST /v1/patch_sweep` takes, and how a bad request is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from aegir_adapters.patching.metrics import METRICS, MetricName
from aegir_adapters.patching.spans import Span
from aegir_stream.errors import OptionError

__all__ = [
    "AlignedPair",
    "CaptureRequest",
    "LatentChoice",
    "LayerRange",
    "PatchSweepRequest",
    "RequestError",
    "RequestLimits",
    "SourceKind",
    "TokensRequest",
    "VectorRow",
    "convert_request",
    "decode_request",
]

Text = str | tuple[int, ...]
"""A prompt or an answer: text, or token ids."""

SourceKind = Literal["run", "zero", "mean", "vector", "latent"]

_SHOWN = 120
_FIELD: Final = re.compile(r" - at `\$\.(?:\[\.\.\.\]\.?)*([a-z_]+)")
_NAMED: Final = re.compile(r"(?:required|unknown) field `([^`]*)`")

T = TypeVar("T")


class RequestError(OptionError):
    """A request has a field that it may not have so.

    Attributes:
        field: name of the field.
        value: what it was.
        allowed: what it may be.
    """

    def __init__(self, field: str, value: Any, *, allowed: str, hint: str | None = None) -> None:
        value = None if value is msgspec.UNSET else msgspec.to_builtins(value)
        super().__init__(f"Expected `{field}` to be {allowed}, got {_shown(value)}", hint=hint)
        self.field = field
        self.value = value
        self.allowed = allowed


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


class PatchSweepRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sweep.

    Attributes:
        prompt: what is patched.
        layers: swept layers.
        source_run: name of a captured run; with `clean_prompt` it is captured if there is none.
        clean_prompt: the source run's prompt.
        hook: where to patch.
        hooks: several of them, in the place of `hook`.
        positions: swept positions of `prompt`: numbers, spans of its text, or all.
        alpha: ``(1 - alpha) * unpatched + alpha * source``.
        answer_token: spelled exactly by one token.
        answer_token_id: wins over `answer_token`.
        answer: in their place an answer of any number of tokens.
        foil_token: like `answer_token`, for `logit_diff`.
        foil_token_id: wins over `foil_token`.
        foil: in their place a foil of as many tokens as the answer.
        metric: what the grid holds.
        stream: whether to answer with server-sent events.
        keep_source: whether a captured run stays after the sweep.
        clean_baseline: `logprob` or `logit_diff` of the clean prompt, which `recovered` then refers
            to in the place of the source run's own.
        alignment: `auto`, or pairs that belong together.
        source: what kind of source; which of the following it needs is said there.
        source_runs: for `mean`, names of captured runs; `source_run` by default.
        vectors: for `vector`, one for each hook and layer.
        latent: for `latent`; its activation in the source run is put in, or zero without a run.
        order: whether the most important cells come first, or those at the first positions.
        limits: what not to go beyond.
        logprobs: has no meaning here, where the answer's probability is exact.
        model: likewise; there is one model.
    """

    prompt: Text
    layers: tuple[int, ...] | LayerRange | Literal["all"]
    source_run: str | None = None
    clean_prompt: Text | None = None
    hook: str = "post_block"
    hooks: tuple[str, ...] | None = None
    positions: tuple[int | Span, ...] | Literal["all_prompt"] = "all_prompt"
    alpha: float = 1.0
    answer_token: str | None = None
    answer_token_id: int | None = None
    answer: Text | None = None
    foil_token: str | None = None
    foil_token_id: int | None = None
    foil: Text | None = None
    metric: MetricName = "logprob"
    stream: bool = False
    keep_source: bool = False
    clean_baseline: float | None = None
    alignment: tuple[AlignedPair, ...] | Literal["auto"] = "auto"
    source: SourceKind = "run"
    source_runs: tuple[str, ...] | None = None
    vectors: tuple[VectorRow, ...] | None = None
    latent: LatentChoice | None = None
    order: Literal["importance", "position"] = "importance"
    limits: RequestLimits = RequestLimits()
    logprobs: Annotated[int, Meta(ge=1)] = 20
    model: str | None = None


class CaptureRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run to capture and keep, and what to measure in it; fields as in `PatchSweepRequest`."""

    prompt: Text
    source_run: str | None = None
    layers: tuple[int, ...] | LayerRange | Literal["all"] = "all"
    answer_token: str | None = None
    answer_token_id: int | None = None
    answer: Text | None = None
    foil_token: str | None = None
    foil_token_id: int | None = None
    foil: Text | None = None


class TokensRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt to be taken apart, and positions of it to be found."""

    prompt: Text
    positions: tuple[int | Span, ...] | Literal["all_prompt"] = "all_prompt"


_ALLOWED: Final[Mapping[str, str]] = {
    "prompt": "text or a list of token ids",
    "layers": 'a list of layers, {start, stop, step} with step >= 1, or "all"',
    "source_run": "the name of a run",
    "clean_prompt": "text or a list of token ids",
    "hook": "the name of a hook",
    "hooks": "a list of names of hooks",
    "positions": 'a list of positions and {span, occurrence}, or "all_prompt"',
    "alpha": "a number",
    "answer_token": "text",
    "answer_token_id": "a token id",
    "answer": "text or a list of token ids",
    "foil_token": "text",
    "foil_token_id": "a token id",
    "foil": "text or a list of token ids",
    "metric": f"one of {', '.join(METRICS)}",
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
        kind: `PatchSweepRequest`, or another of this module.

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
    if not isinstance(raw, dict):
        return RequestError("body", raw, allowed="an object")
    if at is None and named is not None and named[1] not in kind.__struct_fields__:
        fields = ", ".join(kind.__struct_fields__)
        return RequestError(named[1], raw[named[1]], allowed=f"left out; fields are {fields}")
    field = at[1] if at else named[1] if named else "body"
    allowed = _ALLOWED.get(field, "something else")
    value = raw.get(field, msgspec.UNSET)
    return RequestError(field, value, allowed=allowed, hint=f"In detail: {_cut(message)}")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = msgspec.json.encode(value).decode()
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
