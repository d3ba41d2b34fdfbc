"""Where a run stands: its steps, its reward, its cost."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from aegir_stream.events import GRPOMetrics, Progress

__all__ = ["RunState", "RunStateView", "capture_share"]


class RunState(msgspec.Struct):
    """The run so far.

    Attributes:
        scores: score by iteration, the last row of an iteration counting.
        metrics: metrics by step.
    """

    scores: dict[int, float | None]
    metrics: dict[int, GRPOMetrics]

    @property
    def iteration(self) -> int | None:
        """Newest iteration or step."""
        return max([*self.scores, *self.metrics], default=None)

    @property
    def best(self) -> float | None:
        """Highest finite score."""
        return max((score for _, score in self.curve), default=None)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(iteration, score) of the finite scores, in order."""
        finite = ((i, s) for i, s in sorted(self.scores.items()) if s is not None)
        return [(i, s) for i, s in finite if math.isfinite(s)]

    @property
    def capture_share(self) -> float | None:
        """Return `capture_share` of the steps so far."""
        return capture_share(self.metrics.values())


def capture_share(metrics: Iterable[GRPOMetrics]) -> float | None:
    """Return the share of the step time that recording took, on the training thread and beside it.

    `None` where no step's time is known.
    """
    rows = [m for m in metrics if m.step_ms]
    total = sum(m.step_ms or 0.0 for m in rows)
    spent = sum((m.capture_ms or 0.0) + (m.write_ms or 0.0) for m in rows)
    return spent / total if total else None


class RunStateView:
    """Folds progress and step metrics into a `RunState`."""

    streams = ("progress", "grpo_metrics")

    def initial(self) -> RunState:
        """Return a run that has not begun."""
        return RunState(scores={}, metrics={})

    def fold(self, state: RunState, events: Iterable[Progress | GRPOMetrics]) -> RunState:
        """Take over the newest row of every iteration and step."""
        for event in events:
            if isinstance(event, Progress):
                state.scores[event.iter] = event.score
            else:
                state.metrics[event.step] = event
        return state
