"""From what the engine measures to what a grid holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from aegir_adapters.patching.metrics import RAW, MetricName, recovered
from aegir_adapters.patching.request import PatchSweepRequest
from aegir_adapters.patching.results import Baselines

__all__ = ["Reading", "asked_metrics", "engine_metrics", "finite", "mean", "readings"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How one metric of one prompt pair is read.

    Attributes:
        metric: what is told.
        measured: the engine's metric that it is read from.
        index: which of a cell's values that is.
        clean: of the clean prompt, what the metric is made of; `None` without one.
        corrupt: of the patched prompt, unpatched.
    """

    metric: MetricName
    measured: MetricName
    index: int
    clean: float | None
    corrupt: float | None

    @property
    def rescaled(self) -> bool:
        """Whether `recovered` is computed here, against a clean baseline that was given."""
        return self.measured != self.metric

    def value(self, measured: Sequence[float | None]) -> float | None:
        """Return what the grid holds for a cell's values."""
        value = measured[self.index]
        if value is None or not self.rescaled:
            return finite(value)
        if self.corrupt is None:
            return None
        return finite(recovered(value, clean=self.clean, corrupt=self.corrupt))

    def noise(self, floors: Mapping[MetricName, float]) -> float | None:
        """Return a noise floor in the grid's unit."""
        floor = finite(floors.get(self.measured))
        if floor is None or not self.rescaled:
            return floor
        if self.clean is None or self.corrupt is None or self.clean == self.corrupt:
            return None
        return floor / abs(self.clean - self.corrupt)


def asked_metrics(request: PatchSweepRequest) -> tuple[MetricName, ...]:
    """Return the metrics that are asked for, each once."""
    return tuple(dict.fromkeys(request.metrics or (request.metric,)))


def engine_metrics(request: PatchSweepRequest) -> tuple[MetricName, ...]:
    """Return what the engine is to measure; the first is what the first metric is read from.

    `recovered` goes with what it is made of, whose baselines are told.
    """
    asked = asked_metrics(request)
    measured = [_measured(metric, request) for metric in asked]
    return tuple(dict.fromkeys((*measured, *(RAW.get(metric, metric) for metric in asked))))


def readings(request: PatchSweepRequest, baselines: Baselines) -> tuple[Reading, ...]:
    """Return how the values of a prompt pair are read, for each metric that is asked for.

    Args:
        request: the sweep.
        baselines: as the engine measured them.
    """
    measured = engine_metrics(request)
    return tuple(
        _reading(metric, measured.index(_measured(metric, request)), request, baselines)
        for metric in asked_metrics(request)
    )


def finite(value: float | None) -> float | None:
    """Return the value, or `None` where JSON has no number for it; zero without a sign."""
    return value + 0.0 if value is not None and math.isfinite(value) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; `None` if one of the values is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _measured(metric: MetricName, request: PatchSweepRequest) -> MetricName:
    """Return what a metric is read from: against a baseline that was given, what it is made of."""
    return metric if request.clean_baseline is None else RAW.get(metric, metric)


def _reading(
    metric: MetricName, index: int, request: PatchSweepRequest, baselines: Baselines
) -> Reading:
    raw = RAW.get(metric, metric)
    measured = _measured(metric, request)
    clean = (baselines.clean or {}).get(raw)
    return Reading(
        metric=metric,
        measured=measured,
        index=index,
        clean=finite(clean if measured == metric else request.clean_baseline),
        corrupt=finite(baselines.corrupt.get(raw)),
    )
