"""What the log of a smoke run says: each metric, its healthy band, and whether it left it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from aegir_stream.events import StepMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events
from aegir_stream.views.step_metrics import Band, is_healthy

__all__ = ["MetricVerdict", "Verdict", "judge", "judge_events"]


class MetricVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One metric over a run.

    Attributes:
        name: the metric.
        value: its newest value.
        band: its newest band; `None` for a metric that is not judged.
        windows: how many values there are.
        out: how many of them were outside of the band of their window.
        expected: whether it was to leave its band.
    """

    name: str
    value: float | None
    band: Band | None
    windows: int
    out: int
    expected: bool

    @property
    def alarm(self) -> bool:
        """Whether it left its band."""
        return self.out > 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A run, judged.

    Attributes:
        metrics: each of them, in order of name.
        passed: whether exactly the metrics left their bands that were to.
    """

    metrics: list[MetricVerdict]
    passed: bool


def judge(run: RunDirectory, *, alarms: Sequence[str]) -> Verdict:
    """Return what the log of a run says.

    Args:
        run: the run directory.
        alarms: names of the metrics that are to leave their bands.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it cannot be read.
    """
    return judge_events(read_events(run, "step_metrics"), alarms=alarms)


def judge_events(events: Iterable[StepMetrics], *, alarms: Sequence[str]) -> Verdict:
    """Return what the windows of a run say; a run without any shows nothing, and fails."""
    metrics: dict[str, MetricVerdict] = {}
    for event in events:
        for name, value in event.metrics.items():
            before = metrics.get(name)
            band = event.bands.get(name)
            outside = band is not None and not is_healthy(value, band)
            metrics[name] = MetricVerdict(
                name=name,
                value=value,
                band=band,
                windows=1 + (before.windows if before else 0),
                out=outside + (before.out if before else 0),
                expected=name in alarms,
            )
    raised = {metric.name for metric in metrics.values() if metric.alarm}
    return Verdict(
        metrics=[metrics[name] for name in sorted(metrics)],
        passed=bool(metrics) and raised == set(alarms),
    )
