"""The completions of one generation: what they are, and what they earned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct
from torch import Tensor

from aegir_stream.events import Completion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aegir_stream.events import PassName

__all__ = ["Generation", "Recall", "Scored", "StepRewards", "texts_of", "weighted_sum"]


class Scored(Struct, frozen=True, kw_only=True, eq=False):
    """What the trainer's reward calculation was asked and what it answered.

    Attributes:
        token_ids: completions of this rank, as lists of token ids.
        completions: the same as text or as lists of chat messages.
        rewards: float32 (world x B, F) on the CPU, reward of each function; NaN where it
            abstained; all ranks in the order of ranks.
    """

    token_ids: Sequence[Sequence[int]]
    completions: Sequence[Any]
    rewards: Tensor


class Recall(Struct, frozen=True, kw_only=True):
    """What of a completion's content to write down.

    Attributes:
        text: the decoded completion.
        token_ids: token ids of prompt and completion.
    """

    text: bool = False
    token_ids: bool = False


class Generation(Struct, frozen=True, kw_only=True, eq=False):
    """One generation as one rank sees it: its own completions, everybody's rewards.

    Ids count from `base` over all ranks, those of this rank from `first`.

    Attributes:
        base: id of the first completion of rank 0.
        rank: process index.
        group_size: completions per prompt.
        names: reward functions.
        scored: completions and rewards.
        totals: float32 (world x B,) on the CPU, weighted sum of the rewards.
        advantages: (B,) as the trainer computed them, of this rank.
        prompt_ids: int64 (B, P), padded.
        prompt_mask: (B, P).
        end_ids: token ids that end a completion.
        whole: whether all its completions are trained on within one optimizer step.
    """

    base: int
    rank: int
    group_size: int
    names: tuple[str, ...]
    scored: Scored
    totals: Tensor
    advantages: Tensor
    prompt_ids: Tensor
    prompt_mask: Tensor
    end_ids: frozenset[int]
    whole: bool

    @property
    def size(self) -> int:
        """Completions of this rank."""
        return len(self.scored.token_ids)

    @property
    def first(self) -> int:
        """Id of this rank's first completion."""
        return self.base + self.rank * self.size

    @property
    def end(self) -> int:
        """Id after the last completion of the last rank."""
        return self.base + len(self.totals)

    def ids(self) -> Tensor:
        """Return int64 (B,) on the CPU, the ids of this rank's completions."""
        return torch.arange(self.first, self.first + self.size)

    def describe(
        self,
        ids: Tensor,
        *,
        step: int,
        recall: Recall,
        iteration: int = 0,
        pass_: PassName | None = None,
    ) -> Iterator[Completion]:
        """Return the completions with these ids, of this rank, as events.

        Reads tensors that may be on a device, so not for the training thread.
        """
        advantages = self.advantages.tolist()
        prompts = self._prompts() if recall.token_ids else None
        for completion in ids.tolist():
            local, everyone = completion - self.first, completion - self.base
            tokens = self.scored.token_ids[local]
            yield Completion(
                step=step,
                completion=completion,
                rank=self.rank,
                group=completion // self.group_size,
                rewards=self._rewards(everyone),
                reward=self.totals[everyone].item(),
                advantage=advantages[local],
                length=len(tokens),
                terminated=bool(len(tokens)) and tokens[-1] in self.end_ids,
                prompt_ids=prompts[local] if prompts else None,
                token_ids=tuple(tokens) if recall.token_ids else None,
                text=texts_of(self.scored.completions[local]) if recall.text else None,
                iteration=iteration,
                pass_=pass_,
            )

    def _rewards(self, everyone: int) -> dict[str, float | None]:
        values = self.scored.rewards[everyone].tolist()
        return {
            name: None if value != value else value  # noqa: PLR0124 - NaN is how TRL abstains
            for name, value in zip(self.names, values, strict=True)
        }

    def _prompts(self) -> list[tuple[int, ...]]:
        rows = zip(self.prompt_ids.tolist(), self.prompt_mask.tolist(), strict=True)
        return [tuple(i for i, real in zip(*row, strict=True) if real) for row in rows]


class StepRewards:
    """The rewards of the completions that are first trained on in one step."""

    def __init__(self) -> None:
        self._shares: list[tuple[Generation, Tensor]] = []

    def add(self, generation: Generation, ids: Tensor) -> None:
        """Count the completions with these ids, of this rank.

        Where a generation is used up within the step, those of all ranks count.
        """
        if not generation.whole:
            self._shares.append((generation, ids))
        elif all(known is not generation for known, _ in self._shares):
            self._shares.append((generation, torch.arange(generation.base, generation.end)))

    def summary(self) -> dict[str, float]:
        """Return the reward fields of `GRPOMetrics`, empty where nothing new was trained on.

        Completions that no reward function judged are left out; the deviation is that of the
        population of completions, not the mean of the groups' deviations.
        """
        totals = [g.totals[ids - g.base] for g, ids in self._shares]
        judged = torch.cat(totals) if totals else torch.empty(0)
        judged = judged[~judged.isnan()]
        if not len(judged):
            return {}
        lengths = [length for g, ids in self._shares for length in _lengths(g, ids)]
        return {
            "reward_mean": judged.mean().item(),
            "reward_std": judged.std(correction=0).item(),
            "reward_min": judged.min().item(),
            "reward_max": judged.max().item(),
            "zero_variance_groups": self._zero_variance_share(),
            "length_mean": sum(lengths) / max(1, len(lengths)),
        }

    def _zero_variance_share(self) -> float:
        flat: list[Tensor] = []
        for generation, ids in self._shares:
            totals = generation.totals.view(-1, generation.group_size)
            spread = totals.amax(1) - totals.amin(1)
            groups = torch.zeros(len(spread), dtype=torch.bool)
            groups[(ids - generation.base) // generation.group_size] = True
            flat.append(spread[groups] == 0)
        return torch.cat(flat).float().mean().item()


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """Return float32 (n,), each completion's total of rewards (n, F); NaN if nothing judged it."""
    totals = (rewards * weights).nansum(1)
    return totals.masked_fill(rewards.isnan().all(1), torch.nan)


def texts_of(completion: Any) -> str:
    """Return the text of a completion, which is a string or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(_content(message) for message in completion)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _lengths(generation: Generation, ids: Tensor) -> list[int]:
    local = (ids - generation.first).tolist()
    known = range(generation.size)
    return [len(generation.scored.token_ids[i]) for i in local if i in known]
