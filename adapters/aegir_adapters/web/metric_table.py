"""Every metric of a run, from its step metrics, in bounded memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aegir_adapters.web.series import Series
from aegir_stream.events import StepMetrics
from aegir_stream.views.step_metrics import Band

__all__ = ["Metric", "MetricTable"]

MOST_METRICS = 256
LONGEST_NAME = 200
_LOWEST_STEP, _HIGHEST_STEP = -(2**63), 2**63 - 1


class Metric:
    """One metric.

    Args:
        number: how many metrics were told before this one; it stays the same while a run grows.

    Attributes:
        series: its values.
        band: its newest band; `None` if it never had one.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.series = Series()
        self.band: Band | None = None


class MetricTable:
    """Takes step metrics as `StepMetricsView` does, and keeps what pages show of them.

    Names are cut after 200 characters; those that agree so far are one metric. Of more than 256
    metrics, those that were told first are kept.

    Attributes:
        metrics: by name. One that has a band and was never told has no values.
        step: the highest step that was told; `None` before.
        is_full: whether metrics were left out.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self.step: int | None = None
        self.is_full = False

    def take(self, events: Iterable[StepMetrics]) -> None:
        """Take over every value and band."""
        for event in events:
            step = event.step
            if not _LOWEST_STEP <= step <= _HIGHEST_STEP:
                continue
            if self.step is None or step > self.step:
                self.step = step
            for name, value in event.metrics.items():
                metric = self.metrics.get(name) or self._begun(name)
                if metric:
                    metric.series.put(step, value)
            for name, band in event.bands.items():
                metric = self.metrics.get(name) or self._begun(name)
                if metric:
                    metric.band = band

    def _begun(self, name: str) -> Metric | None:
        """Return the metric of a name, new if need be; `None` if there are too many."""
        cut = name[:LONGEST_NAME]
        if cut not in self.metrics and len(self.metrics) >= MOST_METRICS:
            self.is_full = True
            return None
        return self.metrics.setdefault(cut, Metric(len(self.metrics)))
