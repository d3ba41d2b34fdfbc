"""One process of trainings on several ranks: python -m adapters.patching.rank DIRECTORY."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from adapters.trainer.rank import shard
from adapters.trainer.tiny import grpo_trainer
from aegir_adapters.patching.during_training import SweepCallback
from aegir_stream.aside import is_aside

STUDY = {"prompt": "w0 w1 w2", "clean_prompt": "w0 w5 w2", "answer": "w4", "hook": "resid_pre"}
PATIENCE = timedelta(seconds=60)


class Passing(TrainerCallback):
    """Has each sweep of rank 0 wait until rank 1 has gone past where it could have swept as well.

    Attributes:
        waited: how often a forward of a sweep has waited.
    """

    def __init__(self, policy: nn.Module) -> None:
        self._store = distributed.distributed_c10d._get_default_store()
        self._step = 0
        self.waited = 0
        policy.register_forward_pre_hook(self._wait)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Let the other one know."""
        self._pass(0)

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Keep the number of the step that begins; sweeps come at its end."""
        self._step = state.global_step + 1

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Let the other one know."""
        self._pass(state.global_step)

    def _pass(self, step: int) -> None:
        if distributed.get_rank() == 1:
            self._store.set(f"passed {step}", "")

    def _wait(self, *_: Any) -> None:
        if is_aside():
            assert distributed.get_rank() == 0
            self._store.wait([f"passed {self._step}"], PATIENCE)
            self.waited += 1


def trained(trainer: Any) -> dict[str, Tensor]:
    """Train, and return this rank's parameters."""
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def replicated(output_dir: Path) -> None:
    """Rank 0 sweeps what DDP holds, while rank 1 goes on; all weights are those without."""
    learning: dict[str, Any] = {"per_device_train_batch_size": 4, "learning_rate": 1e-2}
    alone = trained(grpo_trainer(output_dir / "alone", **learning))
    trainer: Any = grpo_trainer(output_dir / "swept", **learning)
    callback, passing = SweepCallback({"one": STUDY}, every_steps=1), Passing(trainer.model)
    for each in (callback, passing):  # in this order: rank 1 passes where it did not sweep
        trainer.add_callback(each)
    swept = trained(trainer)
    first = distributed.get_rank() == 0
    assert callback.statistics().sweeps == (3 if first else 0), callback.statistics()
    assert (passing.waited > 0) == first
    for name, weight in alone.items():
        assert torch.equal(weight, swept[name]), name
        of_rank_0 = swept[name].clone()
        distributed.broadcast(of_rank_0, src=0)
        assert torch.equal(of_rank_0, swept[name]), name


class Warned(logging.Handler):
    """Keeps what the project logs.

    Attributes:
        said: the messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.said.append(record.getMessage())


def sharded(output_dir: Path) -> None:
    """What FSDP2 splits over the ranks is not swept: rank 0 says so once; training ends."""
    warned = Warned()
    logging.getLogger("aegir_stream").addHandler(warned)
    trainer: Any = grpo_trainer(output_dir, per_device_train_batch_size=4)
    shard(trainer)
    callback = SweepCallback({"one": STUDY}, every_steps=1)
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 2
    assert callback.statistics().sweeps == 0
    if distributed.get_rank() == 0:
        (said,) = warned.said
        assert "DTensors" in said
        assert "aegir sweep RUN" in said
    else:
        assert warned.said == []
    assert not (output_dir / "sweeps").exists()


def main(output_dir: Path) -> None:
    """Run all of it in one process group."""
    torch.set_num_threads(1)
    replicated(output_dir / "replicated")
    sharded(output_dir / "sharded")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
