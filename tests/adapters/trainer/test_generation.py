from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch

from aegir_adapters.trainer.generation import (
    Generation,
    Recall,
    Scored,
    StepRewards,
    texts_of,
    weighted_sum,
)

NAN = math.nan


def generation(*, rank: int = 0, base: int = 0, whole: bool = True) -> Generation:
    """Return the view of one of two ranks on eight completions in two groups."""
    rewards = torch.tensor([[1, 2], [NAN, 4], [NAN, NAN], [0, 0], [1, 1], [1, 1], [1, 1], [1, 1.0]])
    mine = [[7] * (i + 1) + [1] * (i % 2) for i in range(4 * rank, 4 * rank + 4)]
    return Generation(
        base=base,
        rank=rank,
        group_size=4,
        names=("a", "b"),
        scored=Scored(token_ids=mine, completions=["text"] * 4, rewards=rewards),
        totals=weighted_sum(rewards, torch.tensor([1.0, 0.5])),
        advantages=torch.arange(4.0),
        prompt_ids=torch.tensor([[0, 5]] * 4),
        prompt_mask=torch.tensor([[0, 1]] * 4),
        end_ids=frozenset({1}),
        whole=whole,
    )


def test_a_reward_is_the_weighted_sum_of_those_that_did_not_abstain() -> None:
    """A function that abstains adds nothing; where all abstain there is no reward."""
    totals = generation().totals.tolist()
    assert totals[:2] == [2.0, 2.0]
    assert math.isnan(totals[2])
    assert totals[3:] == [0.0, 1.5, 1.5, 1.5, 1.5]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_describes_its_own_completions_under_ids_of_all(rank: int) -> None:
    """Ids count over the ranks, groups over the prompts, in whatever order they are asked for."""
    mine = generation(rank=rank, base=16)
    assert mine.ids().tolist() == [16 + 4 * rank + i for i in range(4)]
    assert mine.end == 24
    events = list(mine.describe(mine.ids().flip(0), step=9, recall=Recall()))
    assert [e.completion for e in events] == mine.ids().flip(0).tolist()
    assert {e.group for e in events} == {4 + rank}
    assert [e.advantage for e in events] == [3, 2, 1, 0]
    assert [e.terminated for e in events] == [True, False, True, False]
    assert {e.step for e in events} == {9}
    expected = {"a": None, "b": 4.0} if rank == 0 else {"a": 1.0, "b": 1.0}
    assert events[2].rewards == expected


def test_a_generation_used_up_in_one_step_counts_for_all_ranks_once() -> None:
    """Every rank knows all rewards; those of both micro-batches together are counted once."""
    mine, rewards = generation(), StepRewards()
    rewards.add(mine, mine.ids()[:2])
    rewards.add(mine, mine.ids()[2:])
    summary = rewards.summary()
    assert summary["reward_mean"] == pytest.approx(fmean([2, 2, 0, 1.5, 1.5, 1.5, 1.5]))
    assert summary["reward_min"] == 0
    assert summary["zero_variance_groups"] == 0.5
    assert summary["length_mean"] == fmean([1, 3, 3, 5])


def test_a_generation_spread_over_steps_counts_by_its_share() -> None:
    """A step that trains on two completions reports on those two."""
    mine, rewards = generation(whole=False), StepRewards()
    rewards.add(mine, mine.ids()[2:])
    summary = rewards.summary()
    assert (summary["reward_mean"], summary["reward_max"]) == (0, 0)
    assert summary["length_mean"] == fmean([3, 5])


def test_a_step_without_new_completions_has_no_rewards() -> None:
    """Nothing is said about rewards rather than zero."""
    assert StepRewards().summary() == {}


def test_the_text_of_a_conversation_is_that_of_its_messages() -> None:
    """Chat completions are joined; messages without text add nothing."""
    assert texts_of("plain") == "plain"
    chat = [{"role": "assistant", "content": "a"}, {"role": "assistant", "tool_calls": []}]
    assert texts_of(chat) == "a"
