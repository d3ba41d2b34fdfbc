from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pytest

from aegir_stream.layout import RunDirectory

from .revealed import off_by
from .test_capture import assert_rewards_are_the_verifiers
from .test_checkpoints import records_of
from .test_passes import assert_residuals, assert_tokens, key_of, whole
from .tiny import Recorded, model

if TYPE_CHECKING:
    from aegir_stream.events import SAELogRecord

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two processes left their runs."""
    directory = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    outcome = subprocess.run(
        [*command, "-m", "tests.adapters.trainer.rank", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return directory


def test_two_ranks_write_their_own_files_and_share_ids(runs: Path) -> None:
    """Each rank records its completions, under ids unique over all, and rank 0 reports on all."""
    run = RunDirectory.at(runs / "replicated")
    ranks = [Recorded(runs / "replicated", lane=lane) for lane in run.lanes("completions")]
    assert [rank.lane for rank in ranks] == ["rank0", "rank1"]
    everyone = [c for rank in ranks for c in rank.completions if c.pass_ is None]
    assert len({(c.step, c.completion) for c in everyone}) == len(everyone) == 16
    assert_rewards_are_the_verifiers(everyone)
    for metrics in ranks[0].metrics:
        rewards = [c.reward for c in everyone if c.step == metrics.step]
        assert metrics.reward_mean == pytest.approx(fmean(rewards))
    evaluated = [c for rank in ranks for c in rank.completions if c.pass_ == "eval"]
    assert {(c.step, c.completion) for c in evaluated} == {(2, i) for i in range(32)}
    assert_rewards_are_the_verifiers(evaluated)
    for number, rank in enumerate(ranks):
        assert {c.rank for c in rank.completions} == {number}
        assert_rank_joins_its_own(rank, records_of(run.snapshot("checkpoint-2", rank.lane)))
    assert run.lanes("grpo_metrics") == run.lanes("progress") == ["rank0"]
    assert run.read_metadata("checkpoint-2")["world_size"] == 2


def assert_rank_joins_its_own(rank: Recorded, records: list[SAELogRecord]) -> None:
    """Each pass of a rank has every token of its own completions, and no other's."""
    lines = {key_of(c): c for c in rank.completions}
    trained = {key: c for key, c in lines.items() if c.pass_ is None}
    evaluated = {key: c for key, c in lines.items() if c.pass_ == "eval"}
    assert_tokens([r for r in records if r.pass_ is None], whole(trained))
    assert_tokens([r for r in records if r.pass_ == "decode"], whole(trained, last=1))
    assert_tokens([r for r in records if r.pass_ == "eval"], whole(evaluated))
    assert_residuals(records, lines, policy=model())


def test_sharded_parameters_change_nothing(runs: Path) -> None:
    """Under FSDP2 each rank reads its own rows, as an unsharded model gives them."""
    run = RunDirectory.at(runs / "sharded")
    ranks = [Recorded(runs / "sharded", lane=lane) for lane in run.lanes("completions")]
    assert [len(rank.completions) for rank in ranks] == [8, 8]
    assert_rewards_are_the_verifiers([c for rank in ranks for c in rank.completions])
    for rank in ranks:
        assert off_by(rank, model()) < 1e-4
