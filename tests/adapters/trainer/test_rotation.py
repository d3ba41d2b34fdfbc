from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from transformers import TrainerCallback

from aegir_adapters.trainer import observe
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events
from system.following import delivered
from system.mounts import Mirror, mirrored
from system.processes import following

from .tiny import TOP_K, grpo_trainer, saes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

STEPS, KEPT, FOLLOWERS = 12, 2, 2
SAVING: dict[str, Any] = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": KEPT,
    "save_only_model": True,
    "per_device_train_batch_size": 4,
    "max_completion_length": 3,
}
WHOLE = {"model.safetensors", "trainer_state.json", "sae_features.jsonl", "aegir_metadata.json"}


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """A directory, and a mount of it that stands in for NFS."""
    with mirrored(tmp_path) as sides:
        yield sides


class Holder(TrainerCallback):
    """A reader that keeps a file of every checkpoint open, as ours must not."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the newest snapshot."""
        run = RunDirectory.at(args.output_dir)
        self._stack.enter_context(run.snapshot(f"checkpoint-{state.global_step}").open())


def whole_checkpoints(run: RunDirectory) -> dict[str, bool]:
    """Return the name of every checkpoint, and whether it holds what a checkpoint must hold."""
    return {c.name: {p.name for p in c.path.iterdir()} >= WHOLE for c in run.checkpoints()}


def test_rotation_removes_old_checkpoints_and_no_others(mirror: Mirror) -> None:
    """With `save_total_limit` and followers on the mount, the newest checkpoints remain, whole.

    The old ones are gone, none is left behind empty, and every record was read all the same.
    """
    path = mirror.mount / "run"
    trainer = grpo_trainer(path, **SAVING)
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    with contextlib.ExitStack() as stack:
        followers = [stack.enter_context(following(path)) for _ in range(FOLLOWERS)]
        trainer.train()
        heard = [follower.heard() for follower in followers]
    assert callback.statistics().errors == 0, callback.statistics().last_error

    run = RunDirectory.at(path)
    newest = range(STEPS - KEPT + 1, STEPS + 1)
    assert whole_checkpoints(run) == {f"checkpoint-{step}": True for step in newest}
    records = [(r.step, r.completion) for r in read_events(run, "sae_features")]
    assert {step for step, _ in records} == set(range(1, STEPS + 1))
    for said in heard:
        assert delivered(said) == records


def test_a_reader_that_holds_files_open_breaks_rotation(mirror: Mirror) -> None:
    """On such a mount rotation leaves behind what it could not remove: the test above can fail."""
    trainer = grpo_trainer(mirror.mount / "run", **SAVING | {"max_steps": 4})
    observe(trainer, sae=saes(), top_k=TOP_K)
    with contextlib.ExitStack() as held:
        trainer.add_callback(Holder(held))
        trainer.train()
        found = whole_checkpoints(RunDirectory.at(mirror.mount / "run"))
    assert not all(found.values())
    assert len(found) > KEPT
