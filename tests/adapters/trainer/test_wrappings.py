from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import TrainerState
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from aegir_adapters.trainer import observe
from aegir_adapters.trainer.capture import Capture
from aegir_adapters.trainer.model_pass import ModelPass

from .adapted import adapted, low_rank, move_adapters
from .apart import Apart
from .revealed import off_by, revealing
from .test_capture import assert_rewards_are_the_verifiers
from .test_hooks import IDS, Receiver, call
from .tiny import HIDDEN, Recorded, grpo_trainer, model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aegir_stream.events import Completion

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def run(trainer: Any, output_dir: Path) -> Recorded:
    """Train, recording all of the residual stream."""
    options = revealing()
    witness = Apart(trainer.model, options["sae"])
    trainer.add_callback(witness)
    callback = observe(trainer, **options, record_token_ids=True)
    trainer.train()
    statistics = callback.statistics()
    assert (statistics.errors, statistics.records_dropped) == (0, 0), statistics.last_error
    assert witness.steps == trainer.args.max_steps
    recorded = Recorded(output_dir)
    assert_rewards_are_the_verifiers(recorded.completions)
    return recorded


POLICIES: dict[str, tuple[Any, Any, bool]] = {
    "switched off": (model, partial(GRPOTrainer, peft_config=low_rank()), False),
    "of a reference": (adapted, GRPOTrainer, True),
}


@pytest.mark.parametrize(("policy", "kind", "reentrant"), POLICIES.values(), ids=POLICIES.keys())
def test_adapters_are_recorded_as_they_are_trained(
    policy: Any, kind: Any, tmp_path: Path, *, reentrant: bool
) -> None:
    """The reference pass runs the same layers with other adapters, or none, and is no loss pass."""
    trainer: Any = grpo_trainer(
        tmp_path,
        policy=policy(),
        kind=kind,
        beta=0.1,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    move_adapters(trainer.model, seed=5)
    recorded = run(trainer, tmp_path)
    assert trainer.ref_model is None
    assert all(metrics.kl for metrics in recorded.metrics)
    assert off_by(recorded, trainer.model) < 1e-4
    with trainer.model.disable_adapter():
        assert off_by(recorded, trainer.model) > 1


def rloo(**of_grpo: Any) -> RLOOTrainer:
    """Return the other trainer that generates, made from the arguments of a `GRPOTrainer`."""
    args = of_grpo["args"]
    known = {f.name for f in fields(RLOOConfig) if f.init}
    shared = {k: v for k, v in args.to_dict().items() if k in known and v is not None}
    shared.pop("generation_batch_size"), shared.pop("beta", None)
    return RLOOTrainer(**of_grpo | {"args": RLOOConfig(**shared, beta=0.0)})


def test_another_trainer_that_generates_is_recorded_alike(tmp_path: Path) -> None:
    """RLOO has the methods of GRPO: completions, rewards and residuals are joined as there."""
    kind: Any = rloo
    trainer: Any = grpo_trainer(tmp_path, kind=kind, steps_per_generation=2)
    assert off_by(run(trainer, tmp_path), trainer.model) < 1e-4


class Interrupted:
    """A rollout in two turns, with words between them that are not the model's."""

    def __init__(self) -> None:
        self.said: dict[tuple[int, ...], list[int]] = {}

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Return completions whose `env_mask` tells whose words they are."""
        asked = trainer.processing_class(prompts)["input_ids"]
        first, _ = trainer._generate_single_turn(asked, None, {}, 1)
        answers = [[5 + i % 3] * (1 + i % 2) for i in range(len(asked))]
        again = [[*p, *a, *b] for p, a, b in zip(asked, first, answers, strict=True)]
        second, _ = trainer._generate_single_turn(again, None, {}, 1)
        parts = list(zip(first, answers, second, strict=True))
        wholes = [[*a, *b, *c] for a, b, c in parts]
        masks = [[1] * len(a) + [0] * len(b) + [1] * len(c) for a, b, c in parts]
        for prompt, whole, mask in zip(asked, wholes, masks, strict=True):
            self.said[*prompt, *whole] = [i for i, own in enumerate(mask) if own]
        return {"prompt_ids": asked, "completion_ids": wholes, "logprobs": None, "env_mask": masks}

    def positions(self, completion: Completion) -> list[int]:
        """Return the positions of the tokens that the model chose."""
        assert completion.prompt_ids is not None
        assert completion.token_ids is not None
        return self.said[completion.prompt_ids + completion.token_ids]


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
def test_only_what_the_model_said_is_recorded(tmp_path: Path) -> None:
    """What tools and environments wrote has no records, and counts in the positions of others."""
    rollout = Interrupted()
    kind: Any = partial(GRPOTrainer, rollout_func=rollout)
    trainer: Any = grpo_trainer(tmp_path, kind=kind, max_completion_length=4)
    recorded = run(trainer, tmp_path)
    assert all(len(rollout.positions(c)) < c.length for c in recorded.completions)
    assert off_by(recorded, trainer.model, positions=rollout.positions) < 1e-4


# What PyTorch 2.13 hides on its own terms while it traces.
UNSEEN_GRADIENTS = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


@UNSEEN_GRADIENTS
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_policy_is_recorded(tmp_path: Path) -> None:
    """The loss pass runs compiled code, with the hooks in it."""
    trainer: Any = grpo_trainer(
        tmp_path, max_steps=1, torch_compile=True, torch_compile_backend="eager"
    )
    recorded = run(trainer, tmp_path)
    assert trainer.model_wrapped is not trainer.model
    assert off_by(recorded, trainer.model) < 1e-4


class Stack(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed token ids as themselves, and apply the layers."""
        hidden = input_ids.float().unsqueeze(-1).expand(-1, -1, HIDDEN)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


@UNSEEN_GRADIENTS
def test_a_model_that_was_compiled_and_used_before_is_recorded() -> None:
    """Its code is compiled again, now with the hooks in it: of two runs the second is, too."""
    stack = Stack()
    stack.compile(backend="eager")
    for _ in range(2):
        expected = stack(IDS)
        capture, receiver = Capture(revealing()["sae"], top_k=HIDDEN, guard=call), Receiver()
        capture.hook(stack.layers)
        following = ModelPass(stack, capture, receiver=receiver, state=TrainerState(), guard=call)
        assert torch.equal(stack(IDS), expected)
        assert [sorted(captured.latents) for captured in receiver.passes] == [[0, 1]]
        capture.unhook()
        following.unhook()
