from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events, replay
from aegir_stream.views import HeatmapView, RunStateView

TESTS = Path(__file__).parents[1]
STEPS, KILLED_IN = 7, 5

TRAIN = f"""
import os, signal, sys
sys.path.insert(0, {str(TESTS)!r})
import torch
from adapters.trainer import tiny
from aegir_adapters.trainer import observe

torch.set_num_threads(1)
output_dir, resume = sys.argv[1], sys.argv[2] == "resume"
trainer = tiny.grpo_trainer(
    output_dir, max_steps={STEPS}, save_strategy="steps", save_steps=2, save_total_limit=1,
    learning_rate=1e-3,
)
callback = observe(trainer, sae=tiny.saes(), top_k=tiny.TOP_K)
if not resume:
    loss = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        result = loss(*args, **kwargs)
        if trainer.state.global_step + 1 == {KILLED_IN}:
            callback._recorder.flush()
            with open(os.path.join(output_dir, "sae_features.live.jsonl"), "ab") as live:
                live.write(b'{{"step":5,"token_index":0,"la')
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    trainer.compute_loss = compute_loss
trainer.train(resume_from_checkpoint=resume)
statistics = callback.statistics()
assert statistics.errors == 0, statistics
"""


def train(output_dir: Path, how: str) -> int:
    """Train in a process of its own; return how it ended."""
    command = [sys.executable, "-c", TRAIN, str(output_dir), how]
    return subprocess.run(command, check=False, env=os.environ, timeout=300).returncode


def test_a_run_killed_in_mid_step_and_resumed_counts_no_step_twice(tmp_path: Path) -> None:
    """After SIGKILL in a step and a resume, the surviving lineage holds every step once.

    Every token of every surviving completion is there, at both layers, and the records of
    checkpoints that rotation deleted are in history.
    """
    assert train(tmp_path, "fresh") == -9
    assert train(tmp_path, "resume") == 0
    run = RunDirectory.at(tmp_path)

    completions = list(read_events(run, "completions"))
    records = list(read_events(run, "sae_features"))
    keys = Counter((r.step, r.completion, r.layer_index, r.token_index) for r in records)
    expected = {
        (c.step, c.completion, layer, token)
        for c in completions
        for layer in (0, 1)
        for token in range(c.length)
    }
    assert set(keys) == expected
    assert set(keys.values()) == {1}
    assert [m.step for m in read_events(run, "grpo_metrics")] == list(range(1, STEPS + 1))
    assert sorted(replay(run, HeatmapView()).state.layers[0]) == list(range(1, STEPS + 1))
    assert replay(run, RunStateView()).state.iteration == STEPS

    # Step 5 was running when the process died, and ran again: both are on the disk.
    labels = [file.label for file in run.history()]
    assert labels == ["checkpoint-2", "checkpoint-4", "abandoned", "checkpoint-6", "checkpoint-7"]
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [STEPS]
    everything = list(read_events(run, "grpo_metrics", attempts="all"))
    assert len(everything) >= STEPS
