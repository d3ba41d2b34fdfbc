"""Logs of features drawn at random: several ranks and layers, and whatever may be missing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, TypeAlias

from aegir_stream.events import Completion, SAELogRecord

__all__ = ["Event", "Lanes", "flat", "interleaved", "lanes", "line", "record", "seeded"]

Event: TypeAlias = SAELogRecord | Completion
Lanes: TypeAlias = dict[tuple[str, int], list[Event]]
"""Events by stream and rank, in the order of their lane."""

LAYERS = (0, 4)
ACTIVATIONS = (0.0, 0.25, 0.1, 0.7, 1.3, -0.4, 3.0, 3.0, math.nan, math.inf)
REWARDS = (0.0, 0.0, 1.0, 1.0, 0.1, 0.3, -0.7, math.nan)


def line(
    completion: int,
    reward: float,
    *,
    step: int = 1,
    group: int = 0,
    rank: int = 0,
    length: int = 3,
    **facts: Any,
) -> Completion:
    """Return the line of a completion."""
    fields: dict[str, Any] = {"rewards": {"only": reward}, "advantage": -reward} | facts
    return Completion(
        step=step,
        completion=completion,
        rank=rank,
        group=group,
        reward=reward,
        length=length,
        terminated=True,
        **fields,
    )


def record(
    completion: int | None,
    fired: dict[int, float],
    *,
    step: int = 1,
    token: int = 0,
    layer: int = 0,
    **facts: Any,
) -> SAELogRecord:
    """Return the record of one token."""
    return SAELogRecord(
        step=step,
        token_index=token,
        layer_index=layer,
        top_feature_indices=tuple(fired),
        top_feature_activations=tuple(fired.values()),
        reconstruction_loss=1.0,
        completion=completion,
        **facts,
    )


def lanes(draw: random.Random, *, most_steps: int = 5) -> Lanes:
    """Return a random log in which nothing can be relied on but the order within a lane."""
    ranks = draw.randint(1, 3)
    streams = ("completions", "sae_features")
    found: Lanes = {(stream, rank): [] for stream in streams for rank in range(ranks)}
    for step in range(1, draw.randint(1, most_steps) + 1):
        for completion in range(draw.randint(ranks, 9)):
            # The first step tells every rank.
            rank = completion if completion < ranks else draw.randrange(ranks)
            if (step == 1 and completion < ranks) or draw.random() < 0.9:
                found["completions", rank] += _lines(draw, step, completion, rank)
            found["sae_features", rank] += _records(draw, step, completion)
    return found


def _lines(draw: random.Random, step: int, completion: int, rank: int) -> Iterator[Event]:
    reward = draw.choice(REWARDS)
    facts = {"step": step, "rank": rank, "length": draw.randint(1, 9)}
    yield line(
        completion,
        reward,
        group=draw.randint(0, 1),
        iteration=int(draw.random() < 0.05),
        **facts,
    )
    if draw.random() < 0.1:
        yield line(completion, 9.0, pass_="eval", **facts)


def _records(draw: random.Random, step: int, completion: int) -> Iterator[Event]:
    for layer in LAYERS:
        for token in range(draw.randint(0, 3)):
            latents = draw.sample(range(6), draw.randint(0, 4))
            fired = {latent: draw.choice(ACTIVATIONS) for latent in latents}
            yield record(completion, fired, step=step, token=token, layer=layer)
    if draw.random() < 0.05:
        yield record(completion, {1: 50.0}, step=step, pass_="decode")
    if draw.random() < 0.05:
        yield record(None, {1: 50.0}, step=step)


def interleaved(lanes: Lanes, draw: random.Random) -> list[Event]:
    """Return the events in an order that keeps that of each lane; every rank is known early."""
    order: list[Event] = []
    waiting = []
    for (stream, _), events in lanes.items():
        known = stream == "completions"
        order += events[:known]
        waiting.append(events[known:])
    while waiting := [lane for lane in waiting if lane]:
        chosen = draw.randrange(len(waiting))
        taken = draw.randint(1, len(waiting[chosen]))
        order += waiting[chosen][:taken]
        waiting[chosen] = waiting[chosen][taken:]
    return order


def seeded(seed: int) -> random.Random:
    """Return chance that is the same each time."""
    return random.Random(seed)  # noqa: S311 - nothing here is secret


def flat(lanes: Lanes) -> list[Event]:
    """Return the events lane by lane."""
    return [event for events in lanes.values() for event in events]
