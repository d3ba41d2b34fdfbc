"""What a completion earned: the total reward, the advantage, or the reward of one function."""

from __future__ import annotations

import math

from aegir_stream.events import Completion

__all__ = ["ADVANTAGE", "TOTAL", "reward_of"]

TOTAL = "R"
"""Name of the weighted sum of all reward functions."""

ADVANTAGE = "advantage"
"""Name of the trainer's advantage."""


def reward_of(completion: Completion, name: str) -> float | None:
    """Return what a completion earned.

    Args:
        completion: the completion.
        name: `R`, `advantage`, or the name of a reward function.

    Returns:
        `None` where the function abstained, did not run or gave no finite number.
    """
    if name == TOTAL:
        value: float | None = completion.reward
    elif name == ADVANTAGE:
        value = completion.advantage
    else:
        value = completion.rewards.get(name)
    return value if value is not None and math.isfinite(value) else None
