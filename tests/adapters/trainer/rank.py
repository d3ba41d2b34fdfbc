"""One process of a run on several ranks: python -m tests.adapters.trainer.rank RUN."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from aegir_adapters.trainer import observe

from .tiny import TOP_K, grpo_trainer, saes


def main(output_dir: Path) -> None:
    """Train two steps of four completions a rank, recording them."""
    torch.set_num_threads(1)
    trainer = grpo_trainer(output_dir, per_device_train_batch_size=4, save_strategy="steps")
    callback = observe(trainer, sae=saes(), top_k=TOP_K, record_token_ids=True)
    trainer.train()
    assert callback.statistics().errors == 0, callback.statistics().last_error
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
