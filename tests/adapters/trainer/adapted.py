"""The tiny model with low-rank adapters that change what it computes."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from .tiny import model


def low_rank() -> LoraConfig:
    """Return where adapters go."""
    modules = ["q_proj", "v_proj", "down_proj"]
    return LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM")


def adapted() -> PeftModel:
    """Return the model with adapters; with those of a reference, where TRL adds them, alike."""
    policy = get_peft_model(model(), low_rank())
    assert isinstance(policy, PeftModel)
    move_adapters(policy, seed=4)
    return policy


def move_adapters(policy: Any, *, seed: int) -> None:
    """Set the adapters that are trained as if they had been for long; a reference stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".default." in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
