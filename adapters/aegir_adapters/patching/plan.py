"""A request, checked against the model before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import (
    AlignedPair,
    LayerRange,
    PatchSweepRequest,
    RequestError,
)
from aegir_adapters.patching.sources import LatentDictionary
from aegir_adapters.patching.spans import Prompt, Span, tokenize
from aegir_adapters.patching.target import Target, check_ids, read_target
from aegir_stream.errors import OptionError

__all__ = [
    "SweepPlan",
    "aligned_pairs",
    "plan_layers",
    "plan_sweep",
    "read_prompt",
    "resolve_positions",
]

Layers = tuple[int, ...] | LayerRange | Literal["all"]

_NEEDS_FOIL = ("logit_diff", "recovered_logit_diff")
_RECOVERED = ("recovered", "recovered_logit_diff")
_BELONGS_TO = {"source_runs": "mean", "vectors": "vector", "latent": "latent"}


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, as far as it is known without its source run.

    Attributes:
        request: as it was asked for.
        prompt: the patched prompt.
        clean: the source run's prompt, if it was given.
        hooks: names, each once.
        layers: each once.
        positions: each once; some may turn out unaligned.
        target: what is measured.
        limits: what applies.
    """

    request: PatchSweepRequest
    prompt: Prompt
    clean: Prompt | None
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    target: Target
    limits: Limits

    @property
    def reads_run(self) -> bool:
        """Whether the source is a run, or the activation of a latent in one."""
        kind, request = self.request.source, self.request
        named = request.source_run is not None or request.clean_prompt is not None
        return kind == "run" or (kind == "latent" and named)


def plan_sweep(
    request: PatchSweepRequest,
    model: PatchableModel,
    *,
    limits: Limits,
    saes: Mapping[str, LatentDictionary],
) -> SweepPlan:
    """Return what a request asks for, or refuse it.

    Raises:
        RequestError: a field does not fit the model, the prompt or another field.
    """
    limits = limits.within(request.limits)
    _check_target(request)
    _check_source(request, saes)
    hooks = _hooks(request, model)
    layers = plan_layers(request.layers, model)
    target = read_target(request, model)
    prompt = read_prompt("prompt", request.prompt, model, limits)
    clean = None
    if request.clean_prompt is not None:
        clean = read_prompt("clean_prompt", request.clean_prompt, model, limits)
    positions = resolve_positions("positions", request.positions, prompt)
    if not layers or not positions:
        field = "positions" if layers else "layers"
        raise RequestError(field, getattr(request, field), allowed="at least one")
    limits.check_cells(hooks=len(hooks), layers=len(layers), positions=len(positions))
    return SweepPlan(
        request=request,
        prompt=prompt,
        clean=clean,
        hooks=hooks,
        layers=layers,
        positions=positions,
        target=target,
        limits=limits,
    )


def plan_layers(asked: Layers, model: PatchableModel) -> tuple[int, ...]:
    """Return layers, each once, in the order asked for.

    Raises:
        RequestError: one is not a layer of the model.
    """
    if asked == "all":
        return tuple(range(model.num_layers))
    if isinstance(asked, LayerRange):
        ends = (asked.start, asked.stop)
        if not all(0 <= end <= model.num_layers for end in ends):
            raise _not_a_layer(ends, model)
        return tuple(range(asked.start, asked.stop, asked.step))
    outside = [layer for layer in asked if not 0 <= layer < model.num_layers]
    if outside:
        raise _not_a_layer(outside, model)
    return tuple(dict.fromkeys(asked))


def read_prompt(field: str, text: Any, model: PatchableModel, limits: Limits) -> Prompt:
    """Return a prompt as tokens.

    Raises:
        RequestError: it is empty, too long, or no prompt of this model.
    """
    if isinstance(text, tuple):
        # Before they are spelled, which takes a while.
        limits.check_tokens(field, len(text))
        check_ids(field, text, model)
    try:
        prompt = tokenize(model.tokenizer, text)
    except OptionError as error:
        allowed = "a list of token ids, for the model has no tokenizer"
        raise RequestError(field, text, allowed=allowed) from error
    if not prompt.token_ids:
        raise RequestError(field, text, allowed="at least one token")
    limits.check_tokens(field, len(prompt.token_ids))
    _check_fits(field, prompt, model)
    check_ids(field, prompt.token_ids, model)
    return prompt


def resolve_positions(field: str, asked: Any, prompt: Prompt) -> tuple[int, ...]:
    """Return positions, each once, in the order asked for.

    Raises:
        RequestError: one is outside the prompt, or a span is not in it.
    """
    if asked == "all_prompt":
        return tuple(range(len(prompt.token_ids)))
    found: dict[int, None] = {}
    for one in asked:
        found.update(dict.fromkeys(_resolve(field, one, prompt)))
    return tuple(found)


def aligned_pairs(pairs: Sequence[AlignedPair], prompt: Prompt, clean: Prompt) -> dict[int, int]:
    """Return the source's position for each position that is named in pairs.

    Raises:
        RequestError: one is outside its prompt, or a span is not in it.
    """
    sources: dict[int, int] = {}
    for pair in pairs:
        here = _resolve("alignment", pair.position, prompt)
        there = _resolve("alignment", pair.source_position, clean)
        # The last token of a subject is where models gather what they know of it.
        sources.update(zip(reversed(here), reversed(there), strict=False))
    return sources


def _check_fits(field: str, prompt: Prompt, model: PatchableModel) -> None:
    config: Any = model.module.config
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    count = len(prompt.token_ids)
    if most is not None and count > most:
        allowed = f"at most {most} tokens long, which is all that the model has positions for"
        raise RequestError(field, f"{count} tokens", allowed=allowed, hint="Shorten the prompt")


def _check_target(request: PatchSweepRequest) -> None:
    if (request.answer, request.answer_token, request.answer_token_id) == (None, None, None):
        raise RequestError("answer_token", None, allowed="given: it, `answer_token_id` or `answer`")
    foil = (request.foil, request.foil_token, request.foil_token_id)
    if request.metric in _NEEDS_FOIL and foil == (None, None, None):
        raise RequestError(
            "foil_token",
            None,
            allowed=f"given for {request.metric}: it, `foil_token_id` or `foil`",
        )
    for field in ("alpha", "clean_baseline"):
        value = getattr(request, field)
        if value is not None and not math.isfinite(value):
            raise RequestError(field, value, allowed="a finite number")


def _check_source(request: PatchSweepRequest, saes: Mapping[str, LatentDictionary]) -> None:
    for field, kind in _BELONGS_TO.items():
        value = getattr(request, field)
        if value is not None and request.source != kind:
            raise RequestError(field, value, allowed=f"left out unless `source` is {kind}")
    if request.source == "vector" and not request.vectors:
        raise RequestError("vectors", request.vectors, allowed="given for the source vector")
    if request.source == "latent":
        if request.latent is None:
            raise RequestError("latent", None, allowed="given for the source latent")
        if request.latent.sae not in saes:
            known = ", ".join(saes) or "none"
            raise RequestError(
                "latent", request.latent.sae, allowed=f"of an SAE that the server has: {known}"
            )
    _check_run(request)


def _check_run(request: PatchSweepRequest) -> None:
    named = request.source_run is not None or request.clean_prompt is not None
    if request.source_run == "":
        raise RequestError("source_run", "", allowed="a name")
    if request.source == "run" and not named:
        raise RequestError("source_run", None, allowed="given: it or `clean_prompt`, or both")
    if request.source == "mean" and not named and not request.source_runs:
        raise RequestError("source_runs", request.source_runs, allowed="given for the source mean")
    if request.source in ("zero", "vector") and named:
        field = "source_run" if request.source_run is not None else "clean_prompt"
        value = getattr(request, field)
        raise RequestError(field, value, allowed=f"left out for the source {request.source}")
    has_clean = request.source == "run" or (request.source == "latent" and named)
    if request.metric in _RECOVERED and not has_clean and request.clean_baseline is None:
        raise RequestError(
            "metric",
            request.metric,
            allowed=f"logprob, logit_diff, kl or rank for the source {request.source}, which has "
            "no clean prompt",
            hint="Or give `clean_baseline`, which recovered refers to",
        )


def _hooks(request: PatchSweepRequest, model: PatchableModel) -> tuple[str, ...]:
    names, field = request.hooks, "hooks"
    if names is None:
        names, field = (request.hook,), "hook"
    if not names:
        raise RequestError("hooks", [], allowed="non-empty when provided")
    for name in names:
        if reason := model.refusal(name):
            allowed = ", ".join(hook.name for hook in model.hooks)
            raise RequestError(
                field, name, allowed=f"one of {allowed}", hint=f"This model refuses it: {reason}"
            )
    return tuple(dict.fromkeys(names))


def _not_a_layer(value: Any, model: PatchableModel) -> RequestError:
    return RequestError("layers", value, allowed=f"within 0..{model.num_layers - 1}")


def _resolve(field: str, one: int | Span, prompt: Prompt) -> tuple[int, ...]:
    length = len(prompt.token_ids)
    if isinstance(one, int):
        if not 0 <= one < length:
            raise RequestError(field, one, allowed=f"within 0..{length - 1}")
        return (one,)
    try:
        return prompt.positions(one)
    except OptionError as error:
        raise RequestError(
            field,
            {"span": one.span, "occurrence": one.occurrence},
            allowed=_allowed(prompt),
            hint=f"{error}",
        ) from error


def _allowed(prompt: Prompt) -> str:
    return f"within 0..{len(prompt.token_ids) - 1}, or a span of the prompt's text"
