"""A smoke run from its start to its verdict."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from typing import Literal

from torch import multiprocessing

from aegir_adapters.mixing.smoke.config import SmokeConfig
from aegir_adapters.mixing.smoke.job import serve_rank
from aegir_adapters.mixing.smoke.verdict import Verdict, judge
from aegir_stream.errors import RunExistsError
from aegir_stream.layout import RunDirectory

__all__ = ["run_smoke"]


def run_smoke(config: SmokeConfig, *, ranks: int, output_dir: Path) -> Verdict:
    """Train on some ranks, each a process of its own; return what their log says.

    A rank that fails ends the others. With W windows a healthy run fails with a probability of at
    most (7 W + 2) `false_alarm`: its seven mix metrics in each window (`healthy_bands`), and twice
    the ledger (`working_set`); that is 1.2e-7 for the configurations that come along. The same seed
    gives the same run.

    Args:
        config: what is run.
        ranks: how many processes.
        output_dir: where the log goes; it must not hold anything yet.

    Raises:
        OptionError: the shards cannot be dealt evenly to so many ranks.
        RunExistsError: the directory is not empty.
        torch.multiprocessing.ProcessRaisedException: a rank failed; it holds its traceback.
    """
    config.batch(ranks)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise RunExistsError(
            f"Expected an empty directory, got `{output_dir}`, which holds something",
            hint="Name another --output-dir, or none",
        )
    with tempfile.TemporaryDirectory(prefix="aegir-smoke-") as meeting:
        multiprocessing.start_processes(  # type: ignore[attr-defined,no-untyped-call]
            serve_rank,
            args=(ranks, config, output_dir, Path(meeting) / "ranks"),
            nprocs=ranks,
            start_method=_start_method(),
        )
    return judge(RunDirectory.at(output_dir), alarms=config.alarms)


def _start_method() -> Literal["fork", "spawn"]:
    """Return how to start a rank.

    A fork has imported torch already (10 s of processor time for two ranks instead of 16), but is
    safe only where there is no other thread that might hold a lock.
    """
    alone = sys.platform == "linux" and threading.active_count() == 1
    return "fork" if alone else "spawn"
