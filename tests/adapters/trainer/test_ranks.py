from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from aegir_stream.layout import RunDirectory

from .test_capture import assert_rewards_are_the_verifiers
from .test_checkpoints import records_of
from .tiny import LAYERS, Recorded

ROOT = Path(__file__).parents[3]


def test_two_ranks_write_their_own_files_and_share_ids(tmp_path: Path) -> None:
    """Each rank records its completions, under ids unique over all, and rank 0 reports on all."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    outcome = subprocess.run(
        [*command, "-m", "tests.adapters.trainer.rank", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]

    run = RunDirectory.at(tmp_path)
    ranks = [Recorded(tmp_path, lane=lane) for lane in run.lanes("completions")]
    assert [rank.lane for rank in ranks] == ["rank0", "rank1"]
    everyone = [c for rank in ranks for c in rank.completions]
    assert len({(c.step, c.completion) for c in everyone}) == len(everyone) == 16
    assert_rewards_are_the_verifiers(everyone)
    for number, rank in enumerate(ranks):
        assert {c.rank for c in rank.completions} == {number}
        records = records_of(run.snapshot("checkpoint-2", rank.lane))
        assert len(records) == sum(c.length for c in rank.completions) * len(LAYERS)
        assert {r.completion for r in records} <= {c.completion for c in rank.completions}
    for metrics in ranks[0].metrics:
        rewards = [c.reward for c in everyone if c.step == metrics.step]
        assert metrics.reward_mean == pytest.approx(fmean(rewards))
    assert run.lanes("grpo_metrics") == run.lanes("progress") == ["rank0"]
    assert run.read_metadata("checkpoint-2")["world_size"] == 2
