"""A witness that SAEs stay out of what is trained, saved and sharded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


_TENSORS = ("w_enc", "b_enc", "w_dec")


class Apart(TrainerCallback):
    """Compares a model with what it was before it was hooked, whenever a step ends.

    Attributes:
        steps: steps that were seen.
    """

    def __init__(self, model: nn.Module, saes: Mapping[int, Any]) -> None:
        self.steps = 0
        self._saved = set(model.state_dict())
        self._modules = {name for name, _ in model.named_modules()}
        self._ours = {getattr(sae, name).data_ptr() for sae in saes.values() for name in _TENSORS}

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        """Look for tensors of an SAE in the model and in the optimizer."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        assert {name.replace("_orig_mod.", "") for name in model.state_dict()} == self._saved
        assert {name for name, _ in model.named_modules()} == self._modules
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in trained} <= {id(p) for p in model.parameters()}
        known = [*model.parameters(), *model.buffers(), *trained]
        local = (getattr(tensor, "_local_tensor", tensor) for tensor in known)
        assert self._ours.isdisjoint(tensor.data_ptr() for tensor in local)
        self.steps += 1
