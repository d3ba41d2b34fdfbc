"""Joins SAE records with the completion that they belong to, a step at a time.

Both streams come in any order, and each in several lanes, one per rank. A step is *settled*, and
what was kept of it let go, when nothing more can come: every rank that has told of completions has
gone on to a later step, in its records as well as in its completions. So memory grows with the
steps by which streams and lanes are apart, not with the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

from aegir_stream.events import Completion, PassName, SAELogRecord
from aegir_stream.views.rewarding import TOTAL, reward_of

__all__ = ["Activity", "Joined", "Joiner", "Joining", "LayerActivity", "Outcome", "Summary"]

Summary: TypeAlias = Literal["mean", "share", "presence"]
"""What one completion says of one latent: its mean activation over the recorded tokens, the share
of them on which it is active, or 1 if it is active on any."""


class Activity(msgspec.Struct, gc=False):
    """One latent in one completion: on how many tokens it was active, and the sum over them."""

    tokens: int = 0
    total: float = 0.0


class LayerActivity(msgspec.Struct):
    """One completion at one layer.

    Attributes:
        tokens: recorded tokens.
        latents: those that were active on any of them.
    """

    tokens: int = 0
    latents: dict[int, Activity] = {}

    def summary(self, what: Summary) -> dict[int, float]:
        """Return one number per active latent; that of every other latent is 0."""
        if what == "presence":
            return dict.fromkeys(self.latents, 1.0)
        if what == "share":
            return {k: latent.tokens / self.tokens for k, latent in self.latents.items()}
        return {k: latent.total / self.tokens for k, latent in self.latents.items()}


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a completion's line.

    `reward` is `None` where the completion does not count: its reward is unknown, or it is trained
    on once more (a later iteration), and no new evidence.
    """

    rank: int
    group: int
    reward: float | None
    length: int


class Joined(msgspec.Struct):
    """One completion: its line, if it has come, and what it activated by layer."""

    outcome: Outcome | None = None
    layers: dict[int, LayerActivity] = {}


class Joining(msgspec.Struct):
    """The steps that are not settled, and how far each rank has come.

    Attributes:
        steps: completions by step and id.
        recorded: those of the steps that have records.
        lines: newest step of which a rank has told completions.
        records: newest step of which a rank has told records.
        newest: newest step of a record.
        settled: newest step that is settled.
        late: events that came after their step was settled, and do not count.
        non_finite: activations that are no finite number, and do not count.
    """

    steps: dict[int, dict[int, Joined]] = {}
    recorded: set[int] = set()
    lines: dict[int, int] = {}
    records: dict[int, int] = {}
    newest: int = -1
    settled: int = -1
    late: int = 0
    non_finite: int = 0

    def open(self) -> Iterator[tuple[int, list[tuple[int, Joined]]]]:
        """Yield the steps that are not settled with their completions, all in ascending order."""
        for step, completions in sorted(self.steps.items()):
            yield step, sorted(completions.items())


class Joiner:
    """Puts events into a `Joining`.

    Args:
        reward: `R`, `advantage`, or the name of a reward function.
        pass_: the forward pass whose records count.
        lag: steps to wait for ranks of which nothing was heard yet.
        open_steps: steps with records that are kept at most; beyond that the oldest is settled as
            it is, for instance where a rank stopped recording. What comes of it later is `late`.
    """

    def __init__(
        self, *, reward: str = TOTAL, pass_: PassName = "loss", lag: int = 2, open_steps: int = 64
    ) -> None:
        self._reward = reward
        self._pass = pass_
        self._lag = lag
        self._open_steps = open_steps

    def add(self, joining: Joining, event: SAELogRecord | Completion) -> bool:
        """Take an event in; tell whether a step may have become settled."""
        if isinstance(event, Completion):
            return self._add_line(joining, event)
        return self._add_record(joining, event)

    def add_tokens(
        self, joining: Joining, *, step: int, completion: int, layer: int, tokens: int = 1
    ) -> LayerActivity | None:
        """Count recorded tokens of a completion; return its layer, `None` if they came too late."""
        joined = _place(joining, step, completion, events=tokens)
        if joined is None:
            return None
        activity = joined.layers.get(layer)
        if activity is None:
            activity = joined.layers[layer] = LayerActivity()
            joining.recorded.add(step)
            if joined.outcome:
                _advance(joining, joined.outcome.rank, step)
        activity.tokens += tokens
        joining.newest = max(joining.newest, step)
        return activity

    def settle(self, joining: Joining) -> Iterator[tuple[int, list[tuple[int, Joined]]]]:
        """Yield, and let go, the steps that are settled now, in ascending order."""
        while joining.steps:
            step = min(joining.steps)
            if not self._is_settled(joining, step):
                return
            joining.settled = step
            joining.recorded.discard(step)
            yield step, sorted(joining.steps.pop(step).items())

    def _add_line(self, joining: Joining, line: Completion) -> bool:
        if (line.pass_ == "eval") != (self._pass == "eval"):
            return False
        joining.lines[line.rank] = max(line.step, joining.lines.get(line.rank, -1))
        joined = _place(joining, line.step, line.completion)
        if joined is None:
            return False
        reward = None if line.iteration else reward_of(line, self._reward)
        joined.outcome = Outcome(line.rank, line.group, reward, line.length)
        if joined.layers:
            _advance(joining, line.rank, line.step)
        return False

    def wants(self, record: SAELogRecord) -> bool:
        """Tell whether a record is of the pass that counts, and of a completion."""
        return (record.pass_ or "loss") == self._pass and record.completion is not None

    def _add_record(self, joining: Joining, record: SAELogRecord) -> bool:
        if record.completion is None or not self.wants(record):
            return False
        is_new = record.step > joining.newest
        activity = self.add_tokens(
            joining, step=record.step, completion=record.completion, layer=record.layer_index
        )
        if activity:
            _add_activations(joining, activity.latents, record)
        return is_new

    def _is_settled(self, joining: Joining, step: int) -> bool:
        if len(joining.recorded) > self._open_steps:
            return True
        ranks = joining.lines.items()
        reached = min((min(line, joining.records.get(r, -1)) for r, line in ranks), default=-1)
        if step >= reached or step + self._lag > joining.newest:
            return False
        return all(joined.outcome for joined in joining.steps[step].values())


def _place(joining: Joining, step: int, completion: int, *, events: int = 1) -> Joined | None:
    if step <= joining.settled:
        joining.late += events
        return None
    completions = joining.steps.setdefault(step, {})
    joined = completions.get(completion)
    if joined is None:
        joined = completions[completion] = Joined()
    return joined


def _advance(joining: Joining, rank: int, step: int) -> None:
    joining.records[rank] = max(step, joining.records.get(rank, -1))


def _add_activations(joining: Joining, latents: dict[int, Activity], record: SAELogRecord) -> None:
    for latent, activation in zip(
        record.top_feature_indices, record.top_feature_activations, strict=False
    ):
        if not math.isfinite(activation):
            joining.non_finite += 1
        elif activation:
            activity = latents.get(latent)
            if activity is None:
                activity = latents[latent] = Activity()
            activity.tokens += 1
            activity.total += activation
