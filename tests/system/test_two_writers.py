from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aegir_stream.batch import Events
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.replay import read_events
from aegir_stream.sinks import JournalSink
from system.following import delivered
from system.killed import STREAMS, event
from system.processes import PATIENCE_S, following, start

STEPS, SIZE, SAVED_EVERY = 60, 7, 20


def test_two_writers_on_one_run_write_separate_files(tmp_path: Path) -> None:
    """Both are read, each in its order, whole and once, by a follower as by who comes later."""
    run = RunDirectory.at(tmp_path / "run")
    with following(run.root, writers=2) as follower:
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(writer(run, first)) for first in (1, 1_000_001)]
            # Both have the run open; now both write at the same time.
            for process in writers:
                assert process.stdin is not None
                process.stdin.close()
            assert [process.wait(PATIENCE_S) for process in writers] == [0, 0]
        expected = {first: list(range(first, first + STEPS * SIZE)) for first in (1, 1_000_001)}
        heard = [serial for _, serial in delivered(follower.heard())]

    assert run.lanes("sae_features") == run.lanes("completions") == ["rank0", "rank0-2"]
    found = {stream: [e.completion for e in read_events(run, stream)] for stream in STREAMS}
    for serials in (heard, *found.values()):
        for first, own in expected.items():
            assert [n for n in serials if first <= n < first + 1_000_000] == own
        assert len(serials) == 2 * STEPS * SIZE
    for checkpoint in run.checkpoints():
        assert run.snapshot_records(checkpoint) == 2 * SAVED_EVERY * SIZE


@contextlib.contextmanager
def writer(run: RunDirectory, first: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a writer; it has opened the run when this is entered, and goes on when told to."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with start(record, run.root, str(first), **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process


def record(directory: str, first: str) -> None:
    """Open the run, wait to be told, then record and save checkpoints."""
    recorder = Recorder(JournalSink(RunDirectory.at(directory)))
    assert recorder.flush()
    recorder.note("here", {})
    assert recorder.flush()
    sys.stdout.write("open\n")
    sys.stdout.flush()
    sys.stdin.read()
    serial = int(first)
    for step in range(1, STEPS + 1):
        for stream in STREAMS:
            events = tuple(event(stream, step, n) for n in range(serial, serial + SIZE))
            recorder.emit(Events(stream, events, step=step))
        serial += SIZE
        if step % SAVED_EVERY == 0:
            Path(directory, f"checkpoint-{step}").mkdir(exist_ok=True)
            assert recorder.seal(checkpoint=f"checkpoint-{step}", step=step)
    assert recorder.close()
    assert recorder.statistics().errors == 0
