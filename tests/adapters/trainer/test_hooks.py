from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerState

from aegir_adapters.trainer.capture import Capture
from aegir_adapters.trainer.model_pass import ModelPass
from aegir_adapters.trainer.tokens import completion_tokens

from .tiny import HIDDEN, TinySAE

if TYPE_CHECKING:
    from torch import Tensor

    from aegir_adapters.trainer.capture import CapturedPass


def call(action: Any, *args: Any) -> Any:
    """Stand in for the guard, without keeping errors."""
    return action(*args)


class Checkpointed(nn.Module):
    """Two layers whose whole calls are checkpointed, as transformers 5.0 and older do it."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        self.use_reentrant = use_reentrant

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed token ids as themselves, and apply the layers."""
        hidden = input_ids.float().unsqueeze(-1).expand(-1, -1, HIDDEN).requires_grad_()
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=self.use_reentrant)
        return hidden


class Receiver:
    """Keeps what passes delivered."""

    def __init__(self) -> None:
        self.passes: list[CapturedPass] = []

    def pass_captured(self, captured: CapturedPass) -> None:
        """Keep a pass."""
        self.passes.append(captured)

    def completions_trained(self, *_: Any, **__: Any) -> None:
        """Ignore completions."""


IDS = torch.arange(8).reshape(2, 4)


def test_only_the_first_call_of_a_layer_is_read() -> None:
    """Layers that backward calls again, reentrant or not, are read once, in the pass."""
    for use_reentrant in (True, False):
        model = Checkpointed(use_reentrant=use_reentrant)
        capture = Capture({0: TinySAE(seed=0), 1: TinySAE(seed=1)}, top_k=4, guard=call)
        capture.hook(model.layers)
        capture.arm(completion_tokens(torch.ones(2, 4), offset=0, completion=None), step=1)
        output = model(IDS)
        first = {layer: id(top) for layer, top in capture._armed.latents.items()}  # type: ignore[union-attr]
        # Still armed, as it would be if a trainer ran backward within its loss.
        output.sum().backward()
        captured = capture.disarm()
        assert captured is not None
        assert {layer: id(top) for layer, top in captured.latents.items()} == first
        assert sorted(first) == [0, 1]
        model(IDS)
        assert capture.disarm() is None
        capture.unhook()
        assert not any(layer._forward_hooks for layer in model.layers)


def test_nothing_is_read_after_a_pass() -> None:
    """A pass ends with its loss: what backward recomputes finds nothing armed."""
    model = Checkpointed(use_reentrant=True)
    capture = Capture({0: TinySAE(seed=0)}, top_k=4, guard=call)
    capture.hook(model.layers)
    capture.arm(completion_tokens(torch.ones(2, 4), offset=0, completion=None), step=1)
    output = model(IDS)
    assert capture.disarm() is not None
    reading = capture.close_step()
    output.sum().backward()
    assert len(reading) == 1
    assert capture.close_step() == []


def test_a_model_that_is_evaluated_with_gradients_is_not_recorded() -> None:
    """Only a model in training mode with gradients is being trained."""
    model, receiver = Checkpointed(use_reentrant=False), Receiver()
    capture = Capture({0: TinySAE(seed=0)}, top_k=4, guard=call)
    capture.hook(model.layers)
    following = ModelPass(model, capture, receiver=receiver, state=TrainerState(), guard=call)
    model.train(mode=False)
    model(input_ids=IDS)
    model.train()
    with torch.no_grad():
        model(input_ids=IDS)
    assert receiver.passes == []
    model(input_ids=IDS)
    assert [captured.tokens.count for captured in receiver.passes] == [8]
    following.unhook()
    model(input_ids=IDS)
    assert len(receiver.passes) == 1
