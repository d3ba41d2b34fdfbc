"""Following any other trainer: the tokens that a model is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from aegir_adapters.trainer.capture import untraced
from aegir_adapters.trainer.tokens import labelled_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import TrainerState

    from aegir_adapters.trainer.capture import Capture
    from aegir_adapters.trainer.loss_pass import PassReceiver

__all__ = ["ModelPass"]


class ModelPass:
    """Arms a capture for every training forward of a model, by hooks on the model itself.

    A training forward is one with gradients, of a model in training mode; generation and
    reference passes have none. (At the model this tells them apart; at its layers it would not,
    since reentrant checkpointing runs those without gradients.)

    Args:
        model: the model whose keyword arguments hold labels or an attention mask.
        capture: what is armed.
        receiver: who gets what was read.
        state: the trainer's state, for the step.
        guard: calls a function so that its failure reaches nobody.
    """

    def __init__(
        self,
        model: nn.Module,
        capture: Capture,
        *,
        receiver: PassReceiver,
        state: TrainerState,
        guard: Callable[..., Any],
    ) -> None:
        self._capture = capture
        self._receiver = receiver
        self._state = state
        self._guard = guard
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(untraced(self._before), with_kwargs=True),
            model.register_forward_hook(untraced(self._after), always_call=True),
        ]

    def unhook(self) -> None:
        """Remove the hooks. Idempotent."""
        while self._handles:
            self._handles.pop().remove()

    def _before(self, model: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._guard(self._begin, model, kwargs)

    def _after(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        self._guard(self._end)

    def _begin(self, model: nn.Module, kwargs: dict[str, Any]) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        tokens = labelled_tokens(kwargs)
        if tokens is not None:
            self._capture.phase = "loss"
            self._capture.arm(tokens, step=self._state.global_step + 1)

    def _end(self) -> None:
        self._capture.phase = "other"
        captured = self._capture.disarm()
        if captured is not None:
            self._receiver.pass_captured(captured)
