"""Whether the fields of a request go together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aegir_adapters.patching.metrics import METRICS, UNSLOPED, MetricName
from aegir_adapters.patching.reading import asked_metrics
from aegir_adapters.patching.refusals import RequestError
from aegir_adapters.patching.request import PatchSweepRequest
from aegir_adapters.patching.sources import LatentDictionary

__all__ = ["check_columns", "check_metrics", "check_numbers", "check_source", "check_target"]

_NEEDS_FOIL = ("logit_diff", "recovered_logit_diff")
_NEEDS_CLEAN = ("recovered", "recovered_logit_diff")
_BELONGS_TO = {"source_runs": "mean", "vectors": "vector", "latent": "latent"}


def check_metrics(request: PatchSweepRequest) -> None:
    """Refuse several metrics that are none.

    Raises:
        RequestError: they are refused.
    """
    if request.metrics is not None and not request.metrics:
        raise RequestError("metrics", [], allowed="non-empty when provided")


def check_numbers(request: PatchSweepRequest) -> None:
    """Refuse what is no number.

    Raises:
        RequestError: it is refused.
    """
    for field in ("alpha", "clean_baseline"):
        value = getattr(request, field)
        if value is not None and not math.isfinite(value):
            raise RequestError(field, value, allowed="a finite number")


def check_target(request: PatchSweepRequest) -> None:
    """Refuse a request without an answer, or without the foil that a metric needs.

    Raises:
        RequestError: it is refused.
    """
    if (request.answer, request.answer_token, request.answer_token_id) == (None, None, None):
        raise RequestError("answer_token", None, allowed="given: it, `answer_token_id` or `answer`")
    foil = (request.foil, request.foil_token, request.foil_token_id)
    needing = [metric for metric in asked_metrics(request) if metric in _NEEDS_FOIL]
    if needing and foil == (None, None, None):
        raise RequestError(
            "foil_token", None, allowed=f"given for {needing[0]}: it, `foil_token_id` or `foil`"
        )


def check_columns(request: PatchSweepRequest) -> None:
    """Refuse groups beside positions, or none of them.

    Raises:
        RequestError: they are refused.
    """
    if request.groups is None:
        return
    if not request.groups:
        raise RequestError("groups", {}, allowed="non-empty when provided")
    if request.positions != "all_prompt":
        raise RequestError("positions", request.positions, allowed="left out beside `groups`")


def check_source(request: PatchSweepRequest, saes: Mapping[str, LatentDictionary]) -> None:
    """Refuse a source that lacks what it needs, or has what belongs to another.

    Raises:
        RequestError: it is refused.
    """
    for field, kind in _BELONGS_TO.items():
        value = getattr(request, field)
        if value is not None and request.source != kind:
            raise RequestError(field, value, allowed=f"left out unless `source` is {kind}")
    if request.source == "vector" and not request.vectors:
        raise RequestError("vectors", request.vectors, allowed="given for the source vector")
    if request.source == "latent":
        _check_latent(request, saes)
    named = request.source_run is not None or request.clean_prompt is not None
    _check_run(request, named=named)
    has_clean = request.source == "run" or (request.source == "latent" and named)
    if not has_clean:
        _check_without_clean(request)
    if request.method == "attribution":
        _check_slopes(request, has_clean=has_clean)


def _check_latent(request: PatchSweepRequest, saes: Mapping[str, LatentDictionary]) -> None:
    if request.latent is None:
        raise RequestError("latent", None, allowed="given for the source latent")
    if request.latent.sae not in saes:
        known = ", ".join(saes) or "none"
        raise RequestError(
            "latent", request.latent.sae, allowed=f"of an SAE that the server has: {known}"
        )
    # Only some dictionaries say how many latents they have.
    count = getattr(saes[request.latent.sae], "n_latents", None)
    if count is not None and request.latent.index >= count:
        raise RequestError(
            "latent",
            request.latent.index,
            allowed=f"one of the {count:,} latents of {request.latent.sae}, counted from 0",
        )


def _check_run(request: PatchSweepRequest, *, named: bool) -> None:
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


def _check_without_clean(request: PatchSweepRequest) -> None:
    if request.clean_baseline is not None:
        return
    allowed = ", ".join(metric for metric in METRICS if metric not in _NEEDS_CLEAN)
    for metric in asked_metrics(request):
        if metric in _NEEDS_CLEAN:
            raise _not_a_metric(
                request,
                metric,
                f"{allowed} for the source {request.source}, which has no clean prompt",
                hint="Or give `clean_baseline`, which recovered refers to",
            )


def _check_slopes(request: PatchSweepRequest, *, has_clean: bool) -> None:
    """Refuse metrics of which there are no estimates."""
    level: Sequence[MetricName] = [*UNSLOPED, *(() if has_clean else ("kl",))]
    allowed = ", ".join(metric for metric in METRICS if metric not in level)
    for metric in asked_metrics(request):
        if metric in level:
            raise _not_a_metric(
                request,
                metric,
                f"one of {allowed} for the method attribution",
                hint="It has no gradient there, which an estimate would need",
            )


def _not_a_metric(
    request: PatchSweepRequest, metric: MetricName, allowed: str, *, hint: str
) -> RequestError:
    field = "metric" if request.metrics is None else "metrics"
    return RequestError(field, metric, allowed=allowed, hint=hint)
