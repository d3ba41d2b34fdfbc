from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from aegir_adapters.trainer import SidecarCallback, observe
from aegir_stream.sinks import MemorySink

from .tiny import TOP_K, Recorded, TinySAE, Top, grpo_trainer, model, saes

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aegir_stream.typing import Append

METHODS = ("_calculate_rewards", "_generate_and_score_completions", "compute_loss")

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


class BrokenSAE(TinySAE):
    """An SAE that cannot encode."""

    def top(self, x: Tensor, *, k: int) -> Top:
        """Fail."""
        raise RuntimeError(f"No latents for {len(x)} tokens, k = {k}")


class FullDisk(MemorySink):
    """A sink without space."""

    async def write(self, append: Append) -> None:
        """Fail as a full disk does."""
        raise OSError(28, f"No space left for {append.records} records")


def parameters_after(output_dir: Path, **options: Any) -> dict[str, Tensor]:
    """Train three steps that learn, recorded if there are options; return the parameters."""
    policy = model()
    trainer = grpo_trainer(output_dir, policy=policy, learning_rate=1e-2, max_steps=3)
    if options:
        observe(trainer, top_k=TOP_K, **options)
    trainer.train()
    return dict(policy.state_dict())


def test_recording_does_not_change_training(tmp_path: Path) -> None:
    """With and without a recording, the same seed ends in the same parameters, bit by bit."""
    alone = parameters_after(tmp_path / "alone")
    recorded = parameters_after(tmp_path / "recorded", sae=saes())
    failing = parameters_after(tmp_path / "failing", sae={0: BrokenSAE(seed=0)})
    for name, tensor in alone.items():
        assert torch.equal(tensor, recorded[name]), name
        assert torch.equal(tensor, failing[name]), name


def test_an_sae_that_raises_costs_its_own_records_only(tmp_path: Path) -> None:
    """Training goes on, the failures are counted, the other layer is recorded."""
    trainer = grpo_trainer(tmp_path)
    callback = observe(trainer, sae={0: BrokenSAE(seed=0), 1: TinySAE(seed=1)}, top_k=TOP_K)
    trainer.train()

    recorded = Recorded(tmp_path)
    assert trainer.state.global_step == 2
    assert callback.statistics().errors == 2
    assert "No latents for" in (callback.statistics().last_error or "")
    assert {r.layer_index for r in recorded.records} == {1}
    assert len(recorded.records) == sum(c.length for c in recorded.completions)
    assert sum(m.errors or 0 for m in recorded.metrics) == 2


def test_a_full_disk_is_counted_and_training_goes_on(tmp_path: Path) -> None:
    """Writes that fail reach nobody but the statistics."""
    trainer = grpo_trainer(tmp_path)
    callback = observe(trainer, sae=saes(), top_k=TOP_K, sinks=(FullDisk(),))
    trainer.train()

    assert trainer.state.global_step == 2
    assert callback.statistics().errors > 0
    assert "No space left" in (callback.statistics().last_error or "")


def test_a_run_directory_that_cannot_be_made_is_counted(tmp_path: Path) -> None:
    """A file where the run directory should be stops the recording, not the training."""
    (tmp_path / "taken").write_text("a file")
    trainer = grpo_trainer(tmp_path / "out")
    callback = observe(trainer, sae=saes(), output_dir=tmp_path / "taken", top_k=TOP_K)
    trainer.train()

    assert trainer.state.global_step == 2
    assert callback.statistics().errors > 0
    assert str(tmp_path / "taken") in (callback.statistics().last_error or "")


def test_a_callback_that_does_not_fit_stays_out_of_the_loop(tmp_path: Path) -> None:
    """Added behind everybody's back it can raise no more: it counts and records nothing."""
    trainer = grpo_trainer(tmp_path)
    callback = SidecarCallback(sae={7: TinySAE(seed=0)}, top_k=TOP_K)
    trainer.add_callback(callback)
    trainer.train()

    assert trainer.state.global_step == 2
    assert callback.statistics().errors == 1
    assert "got 7" in (callback.statistics().last_error or "")


def test_what_the_trainer_raises_is_raised(tmp_path: Path) -> None:
    """An error of the training itself passes unchanged, and nothing stays armed."""

    def broken(**_: Any) -> NoReturn:
        raise ZeroDivisionError("the reward's own error")

    trainer = grpo_trainer(tmp_path)
    trainer.reward_funcs = [broken, broken]
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    with pytest.raises(ZeroDivisionError, match="the reward's own error"):
        trainer.train()
    assert callback.statistics().errors == 0
    callback.detach()


class OtherSignature(GRPOTrainer):
    """A trainer whose loss takes what it takes under other names."""

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        """Compute the loss, and count the calls."""
        self.loss_calls = getattr(self, "loss_calls", 0) + 1
        return super().compute_loss(*given, **named)


def test_a_trainer_with_another_signature_trains_on(tmp_path: Path) -> None:
    """Its method is called once with what it was given; what we cannot read is counted."""
    trainer = grpo_trainer(tmp_path, kind=OtherSignature)
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()
    assert isinstance(trainer, OtherSignature)
    assert trainer.loss_calls == trainer.state.global_step == 2
    assert callback.statistics().errors == 2
    assert not Recorded(tmp_path).records


def test_detach_gives_the_trainer_its_methods_back(tmp_path: Path) -> None:
    """After `detach` the trainer has no attribute it did not have, and no hook is left."""
    trainer = grpo_trainer(tmp_path)
    before = dict(vars(trainer))
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    assert set(vars(trainer)) - set(before) == set(METHODS)
    callback.attach(trainer)
    trainer.train()
    callback.detach()
    callback.detach()
    assert not set(METHODS) & set(vars(trainer))
    assert trainer.model is not None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


def test_detach_leaves_what_others_have_wrapped_since(tmp_path: Path) -> None:
    """A wrapper put over ours stays in place; it then reaches the original method."""
    trainer = grpo_trainer(tmp_path, max_steps=1)
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    ours, calls = trainer.compute_loss, []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ours(*args, **kwargs)

    trainer.compute_loss = theirs  # type: ignore[method-assign]
    callback.detach()
    trainer.train()
    assert trainer.compute_loss is theirs
    assert len(calls) == 1
    assert callback.statistics().errors == 0
    assert not any(tmp_path.glob("completions*"))


def test_a_run_without_its_end_is_closed_as_stopped(tmp_path: Path) -> None:
    """Training that was broken off leaves a closed log once the callback is detached."""

    def interrupted(**_: Any) -> NoReturn:
        raise KeyboardInterrupt

    trainer = grpo_trainer(tmp_path)
    trainer.reward_funcs[1] = interrupted
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    callback.detach()
    assert Recorded(tmp_path).control()[-1].status == "stopped"


def test_training_twice_makes_two_attempts(tmp_path: Path) -> None:
    """The same callback records every call of `train`, each as an attempt of the run."""
    trainer = grpo_trainer(tmp_path, max_steps=1)
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()
    trainer.train()
    recorded = Recorded(tmp_path)
    assert callback.statistics().errors == 0
    assert len(recorded.run.read_manifest()["attempts"]) == 2
    assert [p.iter for p in recorded.progress] == [1, 1]
