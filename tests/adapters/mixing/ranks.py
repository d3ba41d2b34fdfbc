"""Real gloo ranks for tests: processes that are started once and given one job after another.

    with Ranks(2) as ranks:
        results = ranks.run(job, argument)      # job(argument) on each rank; results by rank

A job is a function that the ranks can import by name; it, its arguments and what it returns are
pickled. It runs inside an initialised process group, so `torch.distributed.get_rank()` tells the
ranks apart. A rank that fails, dies or does not answer ends the whole group and the test with it;
the next job starts another group.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

ROOT = Path(__file__).parents[3]
LIMIT_S = 90.0
"""For one job; far above what any takes."""


class RankError(AssertionError):
    """A rank failed; the message holds its traceback."""


class Ranks:
    """A group of processes on this machine, connected through gloo.

    Args:
        world_size: how many.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._meeting = Path()
        self._processes: list[SpawnProcess] = []
        self._lines: list[Connection] = []

    def __enter__(self) -> Self:
        """Start the processes."""
        self._start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them."""
        self.close()

    def run(self, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Do a job on every rank; return what each returned, in the order of the ranks.

        Raises:
            RankError: a rank failed, or did not answer; the group is closed.
        """
        if not self._lines:  # a job before this one failed: that is no reason for this one to
            self._start()
        for line in self._lines:
            line.send((job, arguments))
        answers: dict[int, Any] = {}
        while len(answers) < self.world_size:
            waiting = [n for n in range(self.world_size) if n not in answers]
            ready = wait([self._lines[n] for n in waiting], timeout=LIMIT_S)
            if not ready:
                self._fail(f"ranks {waiting} did not answer within {LIMIT_S:g} s")
            for rank in waiting:
                if self._lines[rank] in ready:
                    answers[rank] = self._answer(rank)
        return [answers[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """End the processes; a second call does nothing."""
        if not self._lines:
            return
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._lines, self._processes = [], []
        shutil.rmtree(self._meeting, ignore_errors=True)

    def _start(self) -> None:
        self._meeting = Path(tempfile.mkdtemp(prefix="ranks-"))
        if str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))  # handed on to the processes, which import the jobs from it
        context = multiprocessing.get_context("spawn")
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                # No daemon: a rank may have DataLoader workers of its own.
                target=_serve,
                args=(rank, self.world_size, self._meeting, theirs),
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(ours)

    def _answer(self, rank: int) -> Any:
        try:
            succeeded, answer = self._lines[rank].recv()
        except EOFError:
            self._fail(f"rank {rank} ended without an answer")
        if not succeeded:
            self._fail(f"rank {rank} failed:\n{answer}")
        return answer

    def _fail(self, message: str) -> NoReturn:
        self.close()
        raise RankError(message)


def on_ranks(job: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Do one job on a group of its own; see `Ranks.run`."""
    with Ranks(world_size) as ranks:
        return ranks.run(job, *arguments)


def _serve(rank: int, world_size: int, meeting: Path, line: Connection) -> None:
    """Do jobs until the other end of the line is gone."""
    import torch  # noqa: PLC0415 - in the ranks only: the parent may not need it
    from torch import distributed  # noqa: PLC0415

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torch")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=LIMIT_S),
    )
    while True:
        try:
            job, arguments = line.recv()
        except EOFError:
            return
        try:
            answer = (True, job(*arguments))
        except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
            answer = (False, traceback.format_exc())
        line.send(answer)
