"""Does the SAE lose what matters? Reconstruction loss of each completion against its reward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from aegir_stream.events import Completion, SAELogRecord

__all__ = ["CompletionLoss", "LossVsReward", "LossVsRewardView", "Point"]


class CompletionLoss(msgspec.Struct):
    """What is known of one completion at one layer: its tokens, and the sum of their losses."""

    tokens: int = 0
    loss: float = 0.0


class Point(msgspec.Struct, frozen=True):
    """One completion at one layer.

    Attributes:
        step: optimizer step.
        completion: id within the step.
        layer: hooked decoder layer.
        loss: mean over its tokens of ``||x - SAE(x)||^2``.
        reward: its total reward R.
    """

    step: int
    completion: int
    layer: int
    loss: float
    reward: float


class LossVsReward(msgspec.Struct):
    """Losses by step, completion and layer; rewards by step and completion."""

    losses: dict[int, dict[int, dict[int, CompletionLoss]]]
    rewards: dict[int, dict[int, float]]

    def points(self) -> Iterator[Point]:
        """Yield the completions of which both loss and reward are known, in order of step."""
        for step, completions in sorted(self.losses.items()):
            rewards = self.rewards.get(step, {})
            for completion in sorted(completions.keys() & rewards.keys()):
                for layer, sums in sorted(completions[completion].items()):
                    mean = sums.loss / sums.tokens
                    yield Point(step, completion, layer, mean, rewards[completion])

    def correlation(self, layer: int) -> float | None:
        """Return Pearson's r between loss and reward at a layer; `None` where it is undefined."""
        pairs = [(p.loss, p.reward) for p in self.points() if p.layer == layer]
        return _pearson(pairs)


class LossVsRewardView:
    """Joins SAE records of the loss pass with completions into a `LossVsReward`."""

    streams = ("sae_features", "completions")

    def initial(self) -> LossVsReward:
        """Return a state that knows nothing."""
        return LossVsReward(losses={}, rewards={})

    def fold(
        self, state: LossVsReward, events: Iterable[SAELogRecord | Completion]
    ) -> LossVsReward:
        """Add losses of records that belong to a completion, and rewards of completions."""
        for event in events:
            if event.pass_ not in {None, "loss"}:
                continue
            if isinstance(event, Completion):
                state.rewards.setdefault(event.step, {})[event.completion] = event.reward
            elif event.completion is not None:
                layers = state.losses.setdefault(event.step, {}).setdefault(event.completion, {})
                sums = layers.setdefault(event.layer_index, CompletionLoss())
                sums.tokens += 1
                sums.loss += event.reconstruction_loss
        return state


def _pearson(pairs: list[tuple[float, float]]) -> float | None:
    """Return Pearson's product-moment correlation; `None` under two pairs or without variance."""
    if len(pairs) < 2:  # noqa: PLR2004 - a line needs two points
        return None
    mean_x = sum(x for x, _ in pairs) / len(pairs)
    mean_y = sum(y for _, y in pairs) / len(pairs)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    spread = sum((x - mean_x) ** 2 for x, _ in pairs) * sum((y - mean_y) ** 2 for _, y in pairs)
    return covariance / spread**0.5 if spread > 0 else None
