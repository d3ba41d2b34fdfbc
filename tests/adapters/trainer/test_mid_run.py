"""Recording that begins and ends while a trainer trains."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import TrainerCallback

from aegir_adapters.trainer import SidecarCallback, observe
from aegir_stream import read_events
from aegir_stream.layout import RunDirectory
from aegir_stream.verification import verify

from .tiny import LAYERS, TOP_K, Recorded, grpo_trainer, model, saes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from trl.trainer.grpo_trainer import GRPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


class AtSteps(TrainerCallback):
    """Does something when a step has ended."""

    def __init__(self, actions: dict[int, Callable[[], Any]]) -> None:
        self._actions = actions

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Act."""
        self._actions.get(state.global_step, lambda: None)()


def trained(output_dir: Path, *, recorded: bool, again: str = "attach") -> dict[str, Tensor]:
    """Train ten steps that learn; record from the third to the sixth and from the eighth on."""
    policy = model()
    trainer = grpo_trainer(
        output_dir, policy=policy, learning_rate=1e-2, max_steps=10, gradient_accumulation_steps=2
    )
    if recorded:
        trainer.add_callback(AtSteps(actions_on(trainer, again=again)))
    trainer.train()
    return dict(policy.state_dict())


def actions_on(trainer: GRPOTrainer, *, again: str) -> dict[int, Callable[[], Any]]:
    """Return what to do after which step."""
    callbacks: list[SidecarCallback] = []

    def begin() -> None:
        callbacks.append(observe(trainer, sae=saes(), top_k=TOP_K))

    def resume() -> None:
        if again == "attach":
            callbacks[0].attach(trainer)
        else:
            begin()

    def end() -> None:
        callbacks[0].detach()

    return {3: begin, 6: end, 8: resume}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Give the parameters that nobody watched."""
    return trained(tmp_path_factory.mktemp("alone"), recorded=False)


@pytest.mark.parametrize("again", ["attach", "observe"])
def test_a_recording_may_begin_end_and_begin_again(
    tmp_path: Path, again: str, alone: dict[str, Tensor]
) -> None:
    """Each recorded step is whole, the log is one readable lineage, training does not notice."""
    watched = trained(tmp_path / "watched", recorded=True, again=again)
    assert all(torch.equal(tensor, watched[name]) for name, tensor in alone.items())

    run = RunDirectory.at(tmp_path / "watched")
    steps = [4, 5, 6, 9, 10]
    metrics = list(read_events(run, "grpo_metrics"))
    completions = list(read_events(run, "completions"))
    records = list(read_events(run, "sae_features"))
    assert [m.step for m in metrics] == steps
    assert Counter(c.step for c in completions) == dict.fromkeys(steps, 16)
    assert Counter(
        (r.step, r.completion, r.layer_index, r.token_index) for r in records
    ) == Counter(
        (c.step, c.completion, layer, index)
        for c in completions
        for layer in LAYERS
        for index in range(c.length)
    )
    assert {m.step: m.records for m in metrics} == Counter(r.step for r in records)
    assert {m.errors for m in metrics} == {0}
    assert Recorded(run.root).control()[-1].status == "finished"
    assert not list(verify(run))


def test_what_was_generated_before_a_recording_began_is_left_out(tmp_path: Path) -> None:
    """A generation for several steps that began unseen has no ids: its steps have no records."""
    trainer = grpo_trainer(tmp_path, max_steps=5, steps_per_generation=2, num_generations=4)
    trainer.add_callback(AtSteps({1: lambda: observe(trainer, sae=saes(), top_k=TOP_K)}))
    trainer.train()
    recorded = Recorded(tmp_path)
    assert {r.step for r in recorded.records} == {c.step for c in recorded.completions} == {3, 4, 5}
    assert None not in {r.completion for r in recorded.records}


def test_a_detached_callback_stays_out_of_the_next_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it is attached again it opens no log, and says so."""
    trainer = grpo_trainer(tmp_path, max_steps=1)
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    callback.detach()
    trainer.train()
    assert not list(tmp_path.glob("*.jsonl"))
    assert "not recorded until attach" in caplog.text
    callback.attach(trainer)
    trainer.train()
    assert Recorded(tmp_path).records
    assert callback.statistics().errors == 0
