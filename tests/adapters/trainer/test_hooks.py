from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerState

from aegir_adapters.trainer.capture import Capture
from aegir_adapters.trainer.model_pass import ModelPass
from aegir_adapters.trainer.tokens import completion_tokens

from .revealed import revealing_sae
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


def test_only_the_model_itself_is_followed_however_it_is_called() -> None:
    """Tokens may come by position; a copy of the model has its hooks, and is not recorded."""
    model, receiver = Checkpointed(use_reentrant=False), Receiver()
    capture = Capture({0: TinySAE(seed=0)}, top_k=4, guard=call)
    capture.hook(model.layers)
    ModelPass(model, capture, receiver=receiver, state=TrainerState(), guard=call)
    copy.deepcopy(model)(input_ids=IDS)
    assert receiver.passes == []
    model(IDS)
    assert [captured.tokens.count for captured in receiver.passes] == [8]


class Unloaded(nn.Module):
    """A layer whose weights are not there yet when it is hooked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(HIDDEN, device="meta"))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what came in."""
        return hidden


def test_an_sae_goes_where_the_residual_stream_is() -> None:
    """Weights may be sharded, offloaded or not loaded: where they lie says nothing."""
    capture = Capture({0: revealing_sae()}, top_k=HIDDEN, guard=call)
    layers = nn.ModuleList([Unloaded()])
    capture.hook(layers)
    capture.arm(completion_tokens(torch.ones(1, 2), offset=0, completion=None), step=1)
    layers[0](torch.randn(1, 2, HIDDEN))
    captured = capture.disarm()
    assert captured is not None
    assert captured.latents[0].reconstruction_loss.tolist() == [0.0, 0.0]
