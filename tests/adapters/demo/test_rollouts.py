from __future__ import annotations

import pytest
import torch

from aegir_adapters.demo.policy import build_policy
from aegir_adapters.demo.rollouts import (
    Rollouts,
    collect_rollouts,
    completion_mask,
    residual_stream,
)
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.train.libraries import torch_threads

TOKENIZER = build_tokenizer()
POLICY = build_policy(TOKENIZER, seed=0)


def collected(seed: int) -> Rollouts:
    """Return a few rollouts of a policy that has learned nothing."""
    with torch_threads(1):
        return collect_rollouts(POLICY, TOKENIZER, layers=[0, 3], seed=seed, count=40)


def test_rollouts_are_reproducible() -> None:
    """The same seed samples the same completions and residuals."""
    first, again = collected(1), collected(1)
    assert first.rewards == again.rewards
    assert torch.equal(first.residuals[3], again.residuals[3])
    assert first.residuals[3].shape != collected(2).residuals[3].shape


def test_rollouts_have_a_row_for_each_token() -> None:
    """Every layer has the same tokens, between the shortest and the longest possible."""
    rollouts = collected(1)
    tokens, width = rollouts.residuals[0].shape
    assert rollouts.residuals[3].shape == (tokens, width)
    assert width == 64
    assert 40 * (7 + 1) <= tokens <= 40 * (10 + 8)
    assert len(rollouts.rewards) == 40
    assert rollouts.mean_reward == pytest.approx(sum(rollouts.rewards) / 40)


def test_a_completion_ends_with_its_first_end() -> None:
    """The first `<eos>` counts as a token, nothing behind it does."""
    eos, word = TOKENIZER.eos_token_id, 7
    sampled = torch.tensor(
        [[word, word, eos, eos, word], [word, word, word, word, word], [word, eos, word, eos, eos]]
    )
    mask = completion_mask(sampled, torch.ones(3, 1), TOKENIZER)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_padding_does_not_show_in_residuals() -> None:
    """A left-padded prompt has the residuals it has alone, and padding has none."""
    batch = TOKENIZER(["41 =>", "41 42 43 =>"], padding=True, return_tensors="pt")
    padded = residual_stream(POLICY, batch["input_ids"], batch["attention_mask"], layers=[2])[2]
    alone = TOKENIZER(["41 =>"], return_tensors="pt")
    single = residual_stream(POLICY, alone["input_ids"], alone["attention_mask"], layers=[2])[2]
    assert padded.shape == (2 + 4, 64)
    torch.testing.assert_close(padded[:2], single, atol=1e-4, rtol=1e-4)


def test_residuals_are_the_layers_outputs() -> None:
    """What is read is what the next layer gets: transformers' own hidden states."""
    batch = TOKENIZER(["41 42 43 =>"], return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    read = residual_stream(POLICY, ids, mask, layers=[0, 2])
    with torch.no_grad():
        states = POLICY(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(read[0], states[1][0])
    torch.testing.assert_close(read[2], states[3][0])


def test_reading_leaves_no_hook_behind() -> None:
    """After reading, the policy is as it was."""
    policy = build_policy(TOKENIZER, seed=0)
    batch = TOKENIZER(["41 =>"], return_tensors="pt")
    residual_stream(policy, batch["input_ids"], batch["attention_mask"], layers=[1])
    assert not policy.model.layers[1]._forward_hooks
