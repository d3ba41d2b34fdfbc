"""What a demo run came to, read back from its log."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from aegir_adapters.demo.separation import FeatureContrast, separating_features
from aegir_stream.events import Completion, GRPOMetrics, SAELogRecord
from aegir_stream.views import capture_share

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

EARLY_STEPS = 10
"""Steps that features are compared over; later almost every completion is rewarded."""

FINAL_STEPS = 10
"""Steps that the reward at the end is the mean of."""


class DemoSummary(Struct, frozen=True, kw_only=True):
    """What a demo run came to.

    Attributes:
        seed: seed of the run.
        steps: optimizer steps of reinforcement learning.
        reward_before: mean reward of completions sampled from the fine-tuned policy, before
            reinforcement learning.
        reward_after: mean reward over the last `FINAL_STEPS` steps.
        records: SAE records in the log.
        layers: layers that appear in them.
        completions: completions in the log.
        dropped: records that were captured and could not be written.
        overhead_share: see `aegir_stream.views.capture_share`.
        features: what separates rewarded from unrewarded completions best in the first
            `EARLY_STEPS` steps.
        phase_seconds: wall time of each phase by its title, in order.
        run_dir: where the log lies.
    """

    seed: int
    steps: int
    reward_before: float
    reward_after: float
    records: int
    layers: tuple[int, ...]
    completions: int
    dropped: int
    overhead_share: float | None
    features: tuple[FeatureContrast, ...]
    phase_seconds: dict[str, float]
    run_dir: Path


@dataclass
class Recorded:
    """What the summary needs of a log."""

    records: int = 0
    layers: set[int] = field(default_factory=set)
    early_records: list[SAELogRecord] = field(default_factory=list)
    completions: int = 0
    early_completions: list[Completion] = field(default_factory=list)
    metrics: list[GRPOMetrics] = field(default_factory=list)


class RecordedView:
    """Fold a run's log to what the summary needs."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that are read."""
        return ("sae_features", "completions", "grpo_metrics")

    def initial(self) -> Recorded:
        """Return the state of an empty log."""
        return Recorded()

    def fold(self, state: Recorded, events: Iterable[Any]) -> Recorded:
        """Return the state after `events`."""
        for event in events:
            if isinstance(event, SAELogRecord):
                state.records += 1
                state.layers.add(event.layer_index)
                if event.step <= EARLY_STEPS:
                    state.early_records.append(event)
            elif isinstance(event, Completion):
                state.completions += 1
                if event.step <= EARLY_STEPS:
                    state.early_completions.append(event)
            elif isinstance(event, GRPOMetrics):
                state.metrics.append(event)
        return state


def summarise(
    recorded: Recorded,
    *,
    seed: int,
    reward_before: float,
    phase_seconds: dict[str, float],
    run_dir: Path,
) -> DemoSummary:
    """Return the summary of what was recorded."""
    return DemoSummary(
        seed=seed,
        steps=len(recorded.metrics),
        reward_before=reward_before,
        reward_after=final_reward(recorded.metrics),
        records=recorded.records,
        layers=tuple(sorted(recorded.layers)),
        completions=recorded.completions,
        dropped=sum(m.dropped or 0 for m in recorded.metrics),
        overhead_share=capture_share(recorded.metrics),
        features=separating_features(recorded.early_records, recorded.early_completions),
        phase_seconds=phase_seconds,
        run_dir=run_dir,
    )


def final_reward(metrics: Iterable[GRPOMetrics]) -> float:
    """Return the mean reward over the last `FINAL_STEPS` steps, NaN without any."""
    rewards = [m.reward_mean for m in metrics if m.reward_mean is not None][-FINAL_STEPS:]
    return sum(rewards) / len(rewards) if rewards else float("nan")
