from __future__ import annotations

import errno
import fcntl
import os
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


def test_a_rank_that_goes_on_to_its_next_segment_counts_as_writing(run: RunDirectory) -> None:
    """Another rank may look at the file just when a checkpoint puts a fresh one in its place."""
    life = Life(run)
    life.record_step()

    class Late(System):
        def lock(self, fd: int, *, shared: bool = False) -> None:
            if shared and not life.saved:
                life.save()
            super().lock(fd, shared=shared)

    live = run.live("sae_features")
    assert Disk(Late()).is_held(live)
    life.kill()
    assert not Disk().is_held(live)


def test_a_look_at_a_file_does_not_cost_its_writer_the_lane(run: RunDirectory) -> None:
    """A writer that finds a file locked by someone who only looks has it the moment after."""
    Life(run).kill()
    looker = os.open(run.live("sae_features"), os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)

    class LookedAt(System):
        def lock(self, fd: int, *, shared: bool = False) -> None:
            super().lock(fd, shared=shared)
            if shared:
                os.close(looker)

    life = Life(on(Disk(LookedAt()), run))
    assert run.lanes("sae_features") == ["rank0"]
    assert Disk().is_held(run.live("sae_features"))
    life.kill()
