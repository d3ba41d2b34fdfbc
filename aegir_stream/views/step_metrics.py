"""How the scalars of a run went, and which of them are out of their healthy range."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from aegir_stream.events import StepMetrics

__all__ = ["Band", "StepMetricsState", "StepMetricsView", "is_healthy"]

Band: TypeAlias = tuple[float | None, float | None]
"""The lowest and the highest healthy value; `None` is no bound."""


class StepMetricsState(msgspec.Struct):
    """The scalars so far.

    Attributes:
        values: value by step, by name of the metric.
        bands: the newest band of each metric that has one.
    """

    values: dict[str, dict[int, float | None]]
    bands: dict[str, Band]

    def newest(self, name: str) -> float | None:
        """Return the newest value that is known of a metric."""
        series = self.values.get(name, {})
        return next(
            (series[s] for s in sorted(series, reverse=True) if series[s] is not None), None
        )

    @property
    def alarms(self) -> list[str]:
        """Names of the metrics whose newest value is out of its band, in order."""
        return sorted(
            name for name, band in self.bands.items() if not is_healthy(self.newest(name), band)
        )


class StepMetricsView:
    """Folds step metrics into a `StepMetricsState`; the last line of a step counts."""

    streams = ("step_metrics",)

    def initial(self) -> StepMetricsState:
        """Return a run that has not begun."""
        return StepMetricsState(values={}, bands={})

    def fold(self, state: StepMetricsState, events: Iterable[StepMetrics]) -> StepMetricsState:
        """Take over every value and band."""
        for event in events:
            for name, value in event.metrics.items():
                state.values.setdefault(name, {})[event.step] = value
            state.bands.update(event.bands)
        return state


def is_healthy(value: float | None, band: Band) -> bool:
    """Tell whether a value lies in a band; what is unknown does, what is no number does not."""
    if value is None:
        return True
    low, high = band
    return (
        not math.isnan(value) and (low is None or value >= low) and (high is None or value <= high)
    )
