"""One process of a run on several ranks: python -m tests.adapters.trainer.rank RUN."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from torch.nn.parallel import DistributedDataParallel

from aegir_adapters.trainer import Precision, observe

from .apart import Apart
from .revealed import revealing
from .tiny import TOP_K, grpo_trainer, saes


def replicated(output_dir: Path) -> None:
    """Train two steps of four completions a rank and evaluate; DDP holds the model."""
    trainer: Any = grpo_trainer(
        output_dir,
        per_device_train_batch_size=4,
        save_strategy="steps",
        eval_strategy="steps",
        eval_steps=2,
    )
    record(trainer, sae=saes(), top_k=TOP_K, passes=("loss", "decode", "eval"))
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)


def sharded(output_dir: Path) -> None:
    """Train two steps with parameters that FSDP2 splits over the ranks."""
    trainer: Any = grpo_trainer(output_dir, per_device_train_batch_size=4)
    shard(trainer)
    record(trainer, **revealing())
    assert trainer.accelerator.is_fsdp2
    assert type(trainer.model.model.layers[0]).__name__ == "FSDPQwen3DecoderLayer"


def record(trainer: Any, **options: Any) -> None:
    """Train and record."""
    witness = Apart(trainer.model, options["sae"])
    trainer.add_callback(witness)
    exact = {"precision": Precision.exact(), "record_token_ids": True}
    callback = observe(trainer, **options | exact)
    trainer.train()
    assert callback.statistics().errors == 0, callback.statistics().last_error
    assert witness.steps == 2


def shard(trainer: Any) -> None:
    """Have accelerate prepare the model for FSDP2, which on CPUs it only does when made to."""
    state = trainer.accelerator.state
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Qwen3DecoderLayer"],
        reshard_after_forward=True,
    )
    trainer.is_fsdp_enabled = True
    # Makes `generate` go on until every rank is done, since each forward needs them all.
    trainer.model._is_fsdp_managed_module = True


def main(output_dir: Path) -> None:
    """Run all of it in one process group."""
    torch.set_num_threads(1)
    replicated(output_dir / "replicated")
    sharded(output_dir / "sharded")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
