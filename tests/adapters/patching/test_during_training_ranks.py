from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from adapters.patching.trained import sweeps_of

TESTS = Path(__file__).parents[2]


def test_rank_0_sweeps_what_it_holds_whole(tmp_path: Path) -> None:
    """Under DDP without a barrier of ours, and with the weights of before; under FSDP2 not at all.

    The processes check that by themselves, see `rank`.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    outcome = subprocess.run(
        [*command, "-m", "adapters.patching.rank", str(tmp_path)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    sweeps = sweeps_of(tmp_path / "replicated" / "swept")
    assert [sweep.status() for sweep in sweeps] == ["finished"] * 3
    assert [s.grids.started.step for s in sweeps if s.grids.started] == [0, 1, 2]
