"""The model that can be swept, inside of what a trainer holds."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from aegir_adapters.patching.decoder import PatchingError

__all__ = ["policy_of"]

_WRAPPERS: Final = ("module", "_orig_mod")
"""Attributes under which DDP and `torch.compile` keep the module they wrap."""

_SPREAD: Final = {
    "cp_enabled": "context parallelism",
    "sp_enabled": "sequence parallelism",
    "tp_enabled": "tensor parallelism",
}
"""Settings of accelerate's `ParallelismConfig` under which a forward needs all ranks."""

_HINT: Final = "Sweep the checkpoints of the run instead: aegir sweep RUN"


def policy_of(model: nn.Module, args: Any = None) -> nn.Module:
    """Return the causal language model that one rank can run by itself.

    DDP, `torch.compile` and PEFT are taken off; low-rank adapters stay in its layers.

    Args:
        model: what the trainer hands to its callbacks.
        args: its arguments.

    Raises:
        PatchingError: a forward of it needs other ranks, or weights that are not there, or is no
            forward of the prompt alone.
    """
    spread = _spread(model, args)
    if spread is not None:
        raise PatchingError(
            f"Expected a policy that each rank holds whole, got {spread}: its forward needs all "
            "ranks at once, and only one of them sweeps",
            hint=_HINT,
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise PatchingError(
            "Expected a policy whose weights are in memory, got one that is offloaded", hint=_HINT
        )
    return _unwrapped(model)


def _spread(model: nn.Module, args: Any) -> str | None:
    """Return what the model is spread over ranks by."""
    settings = getattr(args, "parallelism_config", None)
    for name, what in _SPREAD.items():
        if getattr(settings, name, False):
            return what
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return "parameters that FSDP splits over the ranks"
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return "parameters that DeepSpeed ZeRO-3 splits over the ranks"
        if hasattr(parameter, "placements"):
            return "parameters that are DTensors, as of FSDP2 or tensor parallelism"
    return None


def _unwrapped(model: nn.Module) -> nn.Module:
    for name in _WRAPPERS:
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return _unwrapped(inner)
    if hasattr(model, "peft_config") and callable(getattr(model, "get_base_model", None)):
        return _adapted(model)
    return model


def _adapted(model: Any) -> nn.Module:
    """Return a model with its adapters in place, from within PEFT's."""
    kind = getattr(model, "active_peft_config", None)
    if getattr(kind, "is_prompt_learning", False):
        raise PatchingError(
            f"Expected adapters in the layers of a policy, got {type(kind).__name__}, which puts "
            "learnt positions before every prompt",
            hint="Sweep a policy that is trained whole, or with low-rank adapters",
        )
    base: nn.Module = model.get_base_model()
    return _unwrapped(base)
