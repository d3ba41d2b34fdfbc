"""Made-up policies whose rewards are known to depend on one latent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from aegir_stream.events import Completion, SAELogRecord
from views.batch import np
from views.features import Event, line, record

PLANTED = 7
LATENTS = 300
GROUP = 8


def planted(
    seed: int, *, steps: int = 15, groups: int = 2, shuffled: bool = False, sign: int = 1
) -> list[Event]:
    """Return a run in which the reward depends on latent `PLANTED` and on the length.

    A third of the latents fire the more often the longer the completion is, a third more in some
    groups than in others, which also differ in difficulty. Some are rare, some fire in almost every
    completion. With `shuffled` the rewards of all completions are dealt out anew.
    """
    draw = np.random.default_rng(seed)
    rarity = 10 ** draw.uniform(-2.8, -0.7, LATENTS)
    events: list[Event] = []
    for step in range(1, steps + 1):
        for group in range(groups):
            difficulty = draw.normal()
            topics = draw.choice(range(100, 200), 20, replace=False)
            for member in range(GROUP):
                completion = group * GROUP + member
                length = int(draw.integers(3, 15))
                chances = _chances(rarity, topics, length)
                chances[PLANTED] = draw.choice([0.0, 0.7])
                merit = 2.5 * sign * (chances[PLANTED] - 0.35) / 0.35 + 0.4 * (length - 8.5)
                reward = float(merit + difficulty + draw.normal() > 0)
                events.append(line(completion, reward, step=step, group=group, length=length))
                events += _records(draw, step, completion, chances, length)
    return _dealt(events, draw) if shuffled else events


def _chances(rarity: Any, topics: Any, length: int) -> Any:
    chances = rarity.copy()
    chances[:100] *= length / 5
    chances[topics] *= 4
    return np.minimum(chances, 0.95)


def _records(
    draw: Any, step: int, completion: int, chances: Any, length: int
) -> Iterator[SAELogRecord]:
    fired = draw.random((length, LATENTS)) < chances
    values = draw.exponential(size=(length, LATENTS)) + 0.1
    for token in range(length):
        latents = np.flatnonzero(fired[token])
        hardest = latents[np.argsort(-values[token, latents])]
        active = dict(zip(hardest.tolist(), values[token, hardest].tolist(), strict=True))
        yield record(completion, active, step=step, token=token, layer=4)


def _dealt(events: Sequence[Event], draw: Any) -> list[Event]:
    rewards = [event.reward for event in events if isinstance(event, Completion)]
    dealt = iter(draw.permutation(rewards).tolist())
    return [
        msgspec.structs.replace(event, reward=next(dealt))
        if isinstance(event, Completion)
        else event
        for event in events
    ]
