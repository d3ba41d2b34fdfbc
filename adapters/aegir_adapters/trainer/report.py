"""One line per optimizer step: what training did, and what recording it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aegir_adapters.trainer.deferred import Deferred
from aegir_adapters.trainer.health import HealthReading
from aegir_stream.batch import Events
from aegir_stream.events import GRPOMetrics, Progress
from aegir_stream.recorder import RecorderStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegir_stream.typing import Clock

__all__ = ["StepReport", "StepReporter"]

_FROM_LOGS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "kl": "kl",
    "entropy": "entropy",
}
"""Field of `GRPOMetrics` by the name under which trainers log it."""


class StepReport(Struct, frozen=True, kw_only=True, eq=False):
    """A step that ended, before the trainer has logged it.

    Attributes:
        step: optimizer step.
        fields: fields of `GRPOMetrics` that are known.
        health: SAE health, still on its device.
        progress: the step's line of the progress feed.
    """

    step: int
    fields: dict[str, Any]
    health: Sequence[HealthReading]
    progress: Progress

    def batches(self, logs: Mapping[str, Any]) -> tuple[Deferred, Events]:
        """Return the step's lines, with what the trainer logged for it.

        With `logging_steps` above 1 a trainer logs means since its last log; they stand in the
        line of the step in which they were logged.
        """
        logged: dict[str, Any] = {
            name: float(logs[key])
            for key, name in _FROM_LOGS.items()
            if isinstance(logs.get(key), int | float)
        }

        def make() -> list[GRPOMetrics]:
            health = tuple(reading.read() for reading in self.health)
            return [GRPOMetrics(step=self.step, **self.fields, **logged, health=health)]

        metrics = Deferred(stream="grpo_metrics", make=make, records=1, step=self.step)
        return metrics, Events("progress", (self.progress,), self.step)


class StepReporter:
    """Keeps the account of the running step.

    Args:
        clock: where times come from.
        best: best score of the steps that the run was resumed behind.
    """

    def __init__(self, clock: Clock, *, best: float | None = None) -> None:
        self._clock = clock
        self._before = RecorderStatistics()
        self._best = best
        self._began: float | None = None
        self._running = False
        self._spent_s = 0.0
        self._records = 0

    def begin_step(self) -> None:
        """Start the step's clock. What came before the first step is charged to none."""
        self._began = self._clock.monotonic()
        if not self._running:
            self._running, self._spent_s = True, 0.0

    def charge(self, seconds: float) -> None:
        """Charge the step for time that our code took on the training thread."""
        self._spent_s += seconds

    def count(self, records: int) -> None:
        """Count records that were captured."""
        self._records += records

    def end_step(
        self,
        step: int,
        *,
        rewards: Mapping[str, float],
        health: Sequence[HealthReading],
        statistics: RecorderStatistics,
    ) -> StepReport:
        """Close the account of a step.

        What our code does after this (and at a checkpoint) is charged to the next step.
        """
        now, wall = self._clock.monotonic(), self._clock.time()
        score = rewards.get("reward_mean")
        if score is not None and math.isfinite(score):
            self._best = score if self._best is None else max(self._best, score)
        fields = {
            "ts": wall,
            "step_ms": None if self._began is None else 1e3 * (now - self._began),
            "capture_ms": 1e3 * self._spent_s,
            "records": self._records,
            "queue_bytes": statistics.queued_bytes,
            **self._since_last_step(statistics),
            **rewards,
        }
        self._began, self._spent_s, self._records = None, 0.0, 0
        progress = Progress(iter=step, score=score, best=self._best, ts=wall)
        return StepReport(step=step, fields=fields, health=health, progress=progress)

    def _since_last_step(self, statistics: RecorderStatistics) -> dict[str, Any]:
        before, self._before = self._before, statistics
        busy = statistics.encode_ms + statistics.write_ms
        return {
            "write_ms": busy - before.encode_ms - before.write_ms,
            "dropped": statistics.records_dropped - before.records_dropped,
            "errors": statistics.errors - before.errors,
        }
