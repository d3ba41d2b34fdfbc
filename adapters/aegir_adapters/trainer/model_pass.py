"""Following any other trainer: the tokens that a model is asked to learn."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Protocol

import torch

from aegir_adapters.trainer.capture import untraced
from aegir_adapters.trainer.layers import unwrapped
from aegir_adapters.trainer.tokens import labelled_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle
    from transformers import TrainerState

    from aegir_adapters.trainer.capture import Capture, CapturedPass

__all__ = ["ModelPass", "PassReceiver"]


class PassReceiver(Protocol):
    """Who gets what a pass captured."""

    def pass_captured(self, captured: CapturedPass) -> None:
        """Take what the hooked layers gave during one forward."""
        ...


class ModelPass:
    """Arms a capture for every training forward of a model, by hooks on the model itself.

    A training forward is one with gradients, of a model in training mode; generation, evaluation
    and reference passes (of a model with its adapters off, too) have none. At the model this tells
    them apart; at its layers it would not, since reentrant checkpointing runs those without
    gradients.

    A trainer may keep the labels for itself, to compute the loss outside of the model. They are
    known then if the trainer is attached (see `Attachment`); if not, all tokens are taken that are
    not padding.

    Args:
        model: the model whose arguments hold labels or an attention mask.
        capture: what is armed.
        receiver: who gets what was read.
        state: the trainer's state, for the step.
        guard: calls a function so that its failure reaches nobody.

    Attributes:
        unlabelled: whether a training forward had no labels.
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
        self.unlabelled = False
        self._labels: Tensor | None = None
        self._model = unwrapped(model)
        self._positional = _positional(model) or _positional(self._model)
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(untraced(self._before), with_kwargs=True),
            model.register_forward_hook(untraced(self._after), always_call=True),
        ]

    def unhook(self) -> None:
        """Remove the hooks. Idempotent."""
        while self._handles:
            self._handles.pop().remove()

    def loss_begin(self, call: Mapping[str, Any]) -> None:
        """Remember the labels of the loss that the trainer is about to compute."""
        self._labels = call["inputs"].get("labels")

    def loss_end(self, result: Any) -> None:  # noqa: ARG002 - Listener's signature
        """Forget them."""
        self._labels = None

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guard(self._begin, model, args, kwargs)

    def _after(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        self._guard(self._end)

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy of a hooked model has its hooks as well, and so have the replicas of DataParallel.
        if unwrapped(model) is not self._model:
            return
        if not (model.training and torch.is_grad_enabled()):
            return
        inputs = dict(zip(self._positional, args, strict=False)) | kwargs
        if inputs.get("labels") is None:
            inputs["labels"] = self._kept_labels(inputs.get("input_ids"))
            self.unlabelled |= inputs["labels"] is None
        tokens = labelled_tokens(inputs)
        if tokens is not None:
            self._capture.phase = "loss"
            self._capture.arm(tokens, step=self._state.global_step + 1)

    def _kept_labels(self, ids: Tensor | None) -> Tensor | None:
        """Return the labels that the trainer kept, if they are those of these tokens."""
        labels = self._labels
        if labels is None or ids is None or labels.shape != ids.shape:
            return None
        return labels

    def _end(self) -> None:
        self._capture.phase = "other"
        captured = self._capture.disarm()
        if captured is not None:
            self._receiver.pass_captured(captured)


def _positional(model: nn.Module) -> list[str]:
    """Return the names of what a model takes by position; none of a wrapper that takes anything."""
    parameters = signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
