from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adapters.patching.trained import differences, state_of
from adapters.trainer.tiny import model
from aegir_adapters.patching.borrowed import borrowed
from aegir_stream.aside import is_aside


def tamper(policy: Any) -> None:
    """Change everything that is given back."""
    policy.train(mode=not policy.training)
    policy.model.layers[0].register_forward_hook(lambda *_: None)
    policy.model.layers[1].register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    policy.model.rotary_emb.inv_freq.mul_(2.0)
    policy.model.rotary_emb.register_buffer("other", torch.zeros(1), persistent=False)
    policy.model.rotary_emb.max_seq_len_cached = 1
    policy.forgotten = True
    policy.forward = None
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002, S311


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_model_is_given_back_as_it_was(error: type[BaseException] | None) -> None:
    """However the block is left."""
    policy = model()
    policy.train()
    policy.model.layers[1].mlp.train(mode=False)  # as some keep a part of a model
    before = state_of(policy)
    try:
        with borrowed(policy):
            assert is_aside()
            tamper(policy)
            assert list(differences(before, state_of(policy)))
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert list(differences(before, state_of(policy))) == []
    assert not is_aside()


def test_no_weight_is_copied() -> None:
    """A quantised model keeps its weights in buffers: large ones are left to themselves."""
    policy: Any = nn.Module()
    policy.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    policy.register_buffer("packed", torch.zeros(1 << 20))
    policy.register_buffer("count", torch.zeros(1))
    with borrowed(policy):
        policy.packed += 1
        policy.count += 1
    assert policy.packed.sum() == 1 << 20  # nobody may do that
    assert policy.count == 0


def test_autocast_is_off() -> None:
    """The model computes in the type of its weights, in whatever block that is."""
    policy = model()
    ids = torch.tensor([[3, 4, 5]])
    plain = policy(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16), borrowed(policy):
        assert torch.equal(policy(ids).logits, plain)
