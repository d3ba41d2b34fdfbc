from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import nn

from adapters.patching.trained import adapted
from adapters.trainer.tiny import model
from aegir_adapters.patching.decoder import PatchingError
from aegir_adapters.patching.policy import policy_of


def test_wrappers_are_taken_off_and_adapters_stay() -> None:
    """What is swept is the causal language model itself, with low-rank adapters in its layers."""
    policy = model()
    assert policy_of(policy) is policy
    assert policy_of(nn.DataParallel(policy)) is policy
    assert policy_of(torch.compile(policy, backend="eager")) is policy  # type: ignore[arg-type]
    tuned = adapted()
    inner: Any = policy_of(nn.DataParallel(tuned))
    assert inner is tuned.base_model.model
    assert type(inner.model.layers[0].mlp.down_proj).__module__.startswith("peft.")


def by_zero_3(policy: nn.Module) -> None:
    """Mark a parameter as DeepSpeed does where it keeps a part of it only."""
    next(policy.parameters()).ds_id = 0  # type: ignore[attr-defined]


def by_fsdp(policy: Any) -> None:
    """Put a layer into a module as FSDP1 does."""
    kind = type("FullyShardedDataParallel", (nn.Sequential,), {})
    policy.model.layers[1] = kind(policy.model.layers[1])


def offloaded(policy: Any) -> None:
    """Leave a weight's place empty, as where it lies on a disk."""
    policy.model.norm.to("meta")


@pytest.mark.parametrize(
    ("spread", "told"), [(by_zero_3, "ZeRO-3"), (by_fsdp, "FSDP"), (offloaded, "offloaded")]
)
def test_a_policy_that_is_not_whole_is_refused(spread: Any, told: str) -> None:
    """The message names what splits it, and what to do instead."""
    policy = model()
    spread(policy)
    with pytest.raises(PatchingError, match=told) as raised:
        policy_of(policy)
    assert "aegir sweep RUN" in str(raised.value)


@pytest.mark.parametrize("by", ["tp", "cp", "sp"])
def test_ranks_that_share_a_forward_are_refused(by: str) -> None:
    """So they may although each has all weights; other settings are none of this."""
    settings = {f"{kind}_enabled": kind == by for kind in ("tp", "cp", "sp", "dp_replicate")}
    with pytest.raises(PatchingError, match="parallelism"):
        policy_of(model(), SimpleNamespace(parallelism_config=SimpleNamespace(**settings)))
    alone = SimpleNamespace(parallelism_config=SimpleNamespace(dp_replicate_enabled=True))
    assert policy_of(model(), alone) is not None


def test_learnt_positions_are_refused() -> None:
    """They stand before every prompt, and in no position of it."""
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(PatchingError, match="PromptTuningConfig"):
        policy_of(get_peft_model(model(), config))
