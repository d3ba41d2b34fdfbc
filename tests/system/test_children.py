from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from aegir_stream import codec
from aegir_stream.batch import Events
from aegir_stream.events import Close
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder, RecorderStatistics
from aegir_stream.replay import read_events
from aegir_stream.sinks import JournalSink
from aegir_stream.testing import make_record
from system.processes import run_apart

ITEMS = 40


def batch(serial: int) -> Events:
    """Return one numbered record."""
    return Events("sae_features", (make_record(step=1, completion=serial),), step=1)


class Dataset:
    """A data set that holds the recorder of the run, as anything a trainer holds may."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def load(self, index: int) -> tuple[int, bool]:
        """Return the process that loaded an item, and whether anything was recorded there."""
        recorded = self.recorder.emit(batch(-1))
        recorded |= (
            self.recorder.flush() or self.recorder.seal(checkpoint="x-1", step=1) is not None
        )
        assert self.recorder.close()
        return os.getpid() * (index >= 0), recorded


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_that_were_handed_the_recorder_record_nothing(tmp_path: Path, method: str) -> None:
    """Forked or pickled into a data loader's worker it is a no-op; the parent's log is complete."""
    run_apart(load_items, tmp_path, method)

    run = RunDirectory.at(tmp_path)
    serials = [record.completion for record in read_events(run, "sae_features")]
    assert serials == list(range(2 * ITEMS))
    lines = run.live("sae_features").read_bytes().splitlines()
    assert codec.decode_control(lines[-1]) == Close(status="stopped", records=2 * ITEMS)
    assert sum(b'"open"' in line for line in lines) == 1
    assert run.lanes("sae_features") == ["rank0"]


def load_items(directory: str, method: str) -> None:
    """Record while worker processes load items, and leave closing to the interpreter's exit."""
    # From Python 3.12 on, forking beside threads warns; that it is survived is what is tested.
    warnings.simplefilter("ignore", DeprecationWarning)
    recorder = Recorder(JournalSink(RunDirectory.at(directory)))
    dataset = Dataset(recorder)
    for serial in range(ITEMS):
        recorder.emit(batch(serial))
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as workers:
        loaded = workers.map(dataset.load, range(ITEMS))
        for serial in range(ITEMS, 2 * ITEMS):
            recorder.emit(batch(serial))
        processes, recorded = zip(*loaded, strict=True)
    assert os.getpid() not in processes
    assert not any(recorded)


def test_a_forked_child_that_exits_like_a_program_leaves_the_log_alone(tmp_path: Path) -> None:
    """It runs its exit handlers, in which nothing is closed, waited for or written twice."""
    run_apart(fork_and_exit, tmp_path)

    run = RunDirectory.at(tmp_path)
    assert [r.completion for r in read_events(run, "sae_features")] == [0, 1]
    assert run.live("sae_features").read_bytes().count(b'"$log":"close"') == 1


def fork_and_exit(directory: str) -> None:
    """Fork in the middle of recording; let the child leave through `sys.exit`."""
    warnings.simplefilter("ignore", DeprecationWarning)
    recorder = Recorder(JournalSink(RunDirectory.at(directory)))
    recorder.emit(batch(0))
    child = os.fork()
    if not child:
        recorder.emit(batch(-1))
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    recorder.emit(batch(1))


def unpickled(recorder: Recorder) -> Recorder:
    """Return a recorder by way of its pickle."""
    copied: Recorder = pickle.loads(pickle.dumps(recorder))  # noqa: S301 - made right here
    return copied


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, unpickled])
def test_a_copy_of_a_recorder_is_closed(
    tmp_path: Path, copied: Callable[[Recorder], Recorder]
) -> None:
    """Whoever copies what holds a recorder gets one that does nothing; the original goes on."""
    with recording(tmp_path) as recorder:
        recorder.emit(batch(0))
        other = copied(recorder)

        assert not other.emit(batch(-1))
        assert not other.flush()
        other.note("nothing", {})
        assert other.shield(lambda: 3) == 3
        assert other.statistics() == RecorderStatistics()
        assert other.close()
        recorder.emit(batch(1))
    records = read_events(RunDirectory.at(tmp_path), "sae_features")
    assert [record.completion for record in records] == [0, 1]


@contextlib.contextmanager
def recording(path: Path) -> Iterator[Recorder]:
    """Record into a directory."""
    recorder = Recorder(JournalSink(RunDirectory.at(path)))
    yield recorder
    assert recorder.close()
