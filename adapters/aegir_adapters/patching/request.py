"""What `POST /v1/patch_sweep` and the routes beside it take."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aegir_adapters.patching.decoding import convert_request, decode_request
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.refusals import RequestError
from aegir_adapters.patching.request_parts import (
    AlignedPair,
    Groups,
    LatentChoice,
    LayerRange,
    Places,
    PromptPair,
    RequestLimits,
    SourceKind,
    Text,
    VectorRow,
)

__all__ = [
    "AlignedPair",
    "CaptureRequest",
    "LatentChoice",
    "LayerRange",
    "PatchSweepRequest",
    "PromptPair",
    "RequestError",
    "RequestLimits",
    "SourceKind",
    "TokensRequest",
    "VectorRow",
    "convert_request",
    "decode_request",
]


class PatchSweepRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sweep.

    Attributes:
        prompt: what is patched; left out only where there are `pairs`.
        layers: swept layers.
        source_run: name of a captured run; with `clean_prompt` it is captured if there is none.
        clean_prompt: the source run's prompt.
        hook: where to patch.
        hooks: several of them, in the place of `hook`.
        positions: swept positions of `prompt`: numbers, spans of its text, or all.
        groups: in their place groups of positions, by name, such as ``{"subject": [3, 4], "last":
            [-1]}``. Each is patched together and is one column; negative numbers count from the end
            of the prompt. What is not aligned is left out of its group.
        pairs: several prompt pairs, in the place of `prompt`, `source_run`, `clean_prompt`,
            `positions` and `alignment`; the grid is then the mean over them. They have equally many
            columns, and with groups the same names. An answer, a foil or groups beside them are
            those of every pair that has none of its own.
        alpha: ``(1 - alpha) * unpatched + alpha * source``.
        answer_token: spelled exactly by one token.
        answer_token_id: wins over `answer_token`.
        answer: in their place an answer of any number of tokens.
        foil_token: like `answer_token`, for `logit_diff`.
        foil_token_id: wins over `foil_token`.
        foil: in their place a foil of as many tokens as the answer.
        metric: what the grid holds.
        metrics: several of them, in the place of `metric`, from the same forwards. The grid holds
            the first, and the answer's `metric_grids` all of them.
        method: `exact`, or `attribution` for a preview: an estimate of every cell to first order,
            from one backward pass, and no cell computed.
        stream: whether to answer with server-sent events.
        keep_source: whether a captured run stays after the sweep.
        clean_baseline: `logprob` or `logit_diff` of the clean prompt, which `recovered` then refers
            to in the place of the source run's own; that of every pair.
        alignment: `auto`, or pairs of positions that belong together.
        source: what kind of source; which of the following it needs is said there.
        source_runs: for `mean`, names of captured runs; `source_run` by default.
        vectors: for `vector`, one for each hook and layer.
        latent: for `latent`; its activation in the source run is put in, or zero without a run.
        order: whether the most important cells come first, or those at the first positions.
        limits: what not to go beyond, all pairs together.
        logprobs: has no meaning here, where the answer's probability is exact.
        model: likewise; there is one model.
    """

    prompt: Text | None = None
    layers: tuple[int, ...] | LayerRange | Literal["all"]
    source_run: str | None = None
    clean_prompt: Text | None = None
    hook: str = "post_block"
    hooks: tuple[str, ...] | None = None
    positions: Places | Literal["all_prompt"] = "all_prompt"
    groups: Groups | None = None
    pairs: tuple[PromptPair, ...] | None = None
    alpha: float = 1.0
    answer_token: str | None = None
    answer_token_id: int | None = None
    answer: Text | None = None
    foil_token: str | None = None
    foil_token_id: int | None = None
    foil: Text | None = None
    metric: MetricName = "logprob"
    metrics: tuple[MetricName, ...] | None = None
    method: Literal["exact", "attribution"] = "exact"
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
    positions: Places | Literal["all_prompt"] = "all_prompt"
