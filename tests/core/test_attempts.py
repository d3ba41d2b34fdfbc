from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aegir_stream.disk import Disk
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from aegir_stream.system import System
from core.runs import Life, attempts, drive, on


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.at(tmp_path / "run")


def test_all_ranks_of_a_launch_share_its_attempt(run: RunDirectory) -> None:
    """In whatever order ranks arrive, and whether or not they were there before."""
    lives = [Life(run, rank=rank) for rank in (0, 1)]
    for life in lives:
        life.kill()
    second = [JournalSink(run, rank=rank, continues="checkpoint-2") for rank in (2, 0, 1)]
    assert attempts(*second) == [2, 2, 2]
    for sink in second:
        drive(sink.aclose())
    third = [JournalSink(run, rank=rank, continues="checkpoint-2") for rank in (3, 1, 0)]

    assert attempts(*third) == [3, 3, 3]
    for sink in third:
        drive(sink.aclose())


def test_without_locks_ranks_agree_by_their_checkpoint(run: RunDirectory) -> None:
    """Where no lock tells who is alive, a new launch is known by what it resumed from."""

    class Lockless(System):
        def lock(self, fd: int, *, shared: bool = False) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

    run = on(Disk(Lockless()), run)
    assert attempts(*(JournalSink(run, rank=rank) for rank in (0, 1))) == [1, 1]
    resumed = (JournalSink(run, rank=rank, continues="checkpoint-2") for rank in (2, 1, 0))
    assert attempts(*resumed) == [2, 2, 2]
