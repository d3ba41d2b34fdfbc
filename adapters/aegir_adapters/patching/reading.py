"""From what the engine measures to what a grid holds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from aegir_adapters.patching.metrics import RAW, MetricName, recovered
from aegir_adapters.patching.request import PatchSweepRequest
from aegir_adapters.patching.results import Baselines

__all__ = ["Reading", "engine_metrics", "finite", "read"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How the values of one sweep are read.

    Attributes:
        measured: the engine's metric that cells are read from.
        clean: of the clean prompt, what the metric is made of; `None` without one.
        corrupt: of the patched prompt, unpatched.
        rescaled: whether `recovered` is computed here, against a clean baseline that was given.
    """

    measured: MetricName
    clean: float | None
    corrupt: float | None
    rescaled: bool

    def value(self, measured: float | None) -> float | None:
        """Return what the grid holds for a value that was measured."""
        if measured is None or not self.rescaled:
            return finite(measured)
        if self.corrupt is None:
            return None
        return finite(recovered(measured, clean=self.clean, corrupt=self.corrupt))

    def noise(self, floors: Mapping[MetricName, float]) -> float | None:
        """Return a noise floor in the grid's unit."""
        floor = finite(floors.get(self.measured))
        if floor is None or not self.rescaled:
            return floor
        if self.clean is None or self.corrupt is None or self.clean == self.corrupt:
            return None
        return floor / abs(self.clean - self.corrupt)


def engine_metrics(request: PatchSweepRequest) -> tuple[MetricName, ...]:
    """Return what the engine is to measure; cells are read from the first.

    `recovered` goes with what it is made of, whose baselines are told. Against a clean baseline
    that was given, that alone is measured.
    """
    raw = RAW.get(request.metric, request.metric)
    if request.metric == raw or request.clean_baseline is not None:
        return (raw,)
    return (request.metric, raw)


def read(request: PatchSweepRequest, baselines: Baselines) -> Reading:
    """Return how the values of a sweep are read.

    Args:
        request: the sweep.
        baselines: as the engine measured them.
    """
    measured, *_ = engine_metrics(request)
    raw = RAW.get(request.metric, request.metric)
    rescaled = measured != request.metric
    clean = request.clean_baseline if rescaled else (baselines.clean or {}).get(raw)
    return Reading(
        measured=measured,
        clean=finite(clean),
        corrupt=finite(baselines.corrupt.get(raw)),
        rescaled=rescaled,
    )


def finite(value: float | None) -> float | None:
    """Return the value, or `None` where JSON has no number for it; zero without a sign."""
    return value + 0.0 if value is not None and math.isfinite(value) else None
