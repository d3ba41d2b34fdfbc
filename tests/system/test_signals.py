from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aegir_stream import codec
from aegir_stream.backlog import Overflow
from aegir_stream.batch import Events
from aegir_stream.events import Close, Corrupt
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.replay import read_events
from aegir_stream.sinks import JournalSink, MemorySink
from aegir_stream.source import RunSource
from aegir_stream.testing import make_record
from aegir_stream.typing import Append
from core.runs import drain
from system.processes import PATIENCE_S, command, run_apart

EMITTED = 10_000
SIZE = 20
HANDLED_EVERY_S = 0.002


def batch(serial: int, size: int = 1) -> Events:
    """Return one numbered record, or several under the same number."""
    records = tuple(make_record(step=1, token=t, completion=serial) for t in range(size))
    return Events("sae_features", records, step=1)


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_a_signal_handler_may_emit(tmp_path: Path, overflow: str) -> None:
    """While the main thread is inside `emit`: no deadlock, and nothing is lost uncounted."""
    run_apart(emit_and_be_interrupted, tmp_path, overflow)


def emit_and_be_interrupted(directory: str, overflow: Overflow) -> None:
    """Emit with a timer's handler emitting in between, under a queue that is often full."""
    recorder = Recorder(
        JournalSink(RunDirectory.at(directory)),
        queue_bytes=8 << 10,
        overflow=overflow,
        block_s=0.0005,
    )
    handled = itertools.count()
    signal.signal(signal.SIGALRM, lambda *_: recorder.emit(batch(-next(handled))))
    signal.setitimer(signal.ITIMER_REAL, HANDLED_EVERY_S, HANDLED_EVERY_S)
    for serial in range(EMITTED):
        recorder.emit(batch(serial))
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert recorder.close()

    statistics = recorder.statistics()
    emitted = EMITTED + next(handled)
    assert emitted > EMITTED + 10
    assert statistics.errors == 0, statistics
    assert statistics.queued_bytes == 0
    assert statistics.records_written + statistics.records_dropped == emitted
    assert len(list(read_events(RunDirectory.at(directory), "sae_features"))) == (
        statistics.records_written
    )


def test_a_handler_that_emits_while_the_thread_starts_starts_no_second_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread owns the sink, even if the first batch is interrupted by another."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        started.append(thread)
        signal.raise_signal(signal.SIGUSR1)
        start(thread)

    recorder = Recorder(sink := MemorySink())
    before = signal.signal(signal.SIGUSR1, lambda *_: recorder.emit(batch(2)))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", interrupted)
            recorder.emit(batch(1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert recorder.close()

    assert len(started) == 1
    assert len(sink.appends) == 2


class OwnedSink(MemorySink):
    """A sink that knows which threads have used it."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: set[int] = set()

    async def write(self, append: Append) -> None:
        """Keep an append, and who brought it."""
        self.owners.add(threading.get_ident())
        await super().write(append)


@pytest.mark.parametrize("before", [0, 1])
def test_an_interrupt_anywhere_in_emit_leaves_a_recorder_that_works(before: int) -> None:
    """Ctrl-C in a notebook ends a cell, not the recording: what is emitted next is written."""
    interrupted = True
    place = 0
    while interrupted:
        recorder = Recorder(sink := OwnedSink())
        for _ in range(before):
            recorder.emit(batch(0))
            assert recorder.flush()
        interrupted = emit_interrupted(recorder, place)
        recorder.emit(batch(2))

        assert recorder.flush(timeout_s=PATIENCE_S), f"stuck after an interrupt at place {place}"
        assert recorder.statistics().queued_bytes == 0
        assert recorder.close(timeout_s=PATIENCE_S)
        assert len(sink.appends) - before in ({1, 2} if interrupted else {2})
        assert len(sink.owners) == 1
        place += 1
    assert place > 10


def emit_interrupted(recorder: Recorder, place: int) -> bool:
    """Emit; raise `KeyboardInterrupt` where the interpreter looks for signals the n-th time."""
    looks = itertools.count()

    def interrupt(_frame: object, event: str, _argument: object) -> None:
        # Signals are looked for when a function begins, and after a call of a built-in one.
        if event in {"call", "c_return"} and next(looks) == place:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        recorder.emit(batch(1))
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def stopped_by(number: int, run: RunDirectory) -> tuple[int, int]:
    """Send a signal to a process that records; return its exit code and how much was flushed."""
    program = command(record_for_ever, run.root)
    with subprocess.Popen(
        program, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        flushed = int(process.stdout.readline())
        process.send_signal(number)
        return process.wait(PATIENCE_S), flushed


def record_for_ever(directory: str) -> None:
    """Record, say how much was flushed, and go on."""
    recorder = Recorder(JournalSink(RunDirectory.at(directory)))
    for serial in itertools.count():
        recorder.emit(batch(serial, size=SIZE))
        if serial == 10:
            assert recorder.flush()
            sys.stdout.write(f"{serial + 1}\n")
            sys.stdout.flush()


def serials(run: RunDirectory) -> list[int | None]:
    """Return the numbers of the batches in a log; all but the last must be whole."""
    numbers = [record.completion for record in read_events(run, "sae_features")]
    assert numbers == [n for n in numbers[::SIZE] for _ in range(SIZE)][: len(numbers)]
    return numbers[::SIZE]


def test_sigterm_leaves_a_log_that_can_be_read(tmp_path: Path) -> None:
    """It kills at once, so there is no closing mark; what was flushed is there, in order."""
    run = RunDirectory.at(tmp_path)
    code, flushed = stopped_by(signal.SIGTERM, run)

    assert code == -signal.SIGTERM
    found = serials(run)
    assert len(found) >= flushed
    assert found == list(range(len(found)))
    assert not [d for d in drain(RunSource(run, start="start")) if isinstance(d, Corrupt)]
    assert b'"$log":"close"' not in run.live("sae_features").read_bytes()


def test_an_interrupt_closes_the_log(tmp_path: Path) -> None:
    """Ctrl-C raises in training; at exit what is queued is written, and the log ends `stopped`."""
    run = RunDirectory.at(tmp_path)
    code, flushed = stopped_by(signal.SIGINT, run)

    assert code == -signal.SIGINT
    found = serials(run)
    assert len(found) >= flushed
    assert found == list(range(len(found)))
    last = codec.decode_control(run.live("sae_features").read_bytes().splitlines()[-1])
    assert last == Close(status="stopped", records=SIZE * len(found))


def test_a_process_that_ends_with_a_full_queue_writes_it(tmp_path: Path) -> None:
    """Leaving the program needs no `close`: what is queued then is written first."""
    run_apart(leave_much_queued, tmp_path)

    found = serials(RunDirectory.at(tmp_path))
    assert found == list(range(2000))


def leave_much_queued(directory: str) -> None:
    """End with most of what was emitted still queued."""
    recorder = Recorder(JournalSink(RunDirectory.at(directory)))
    for serial in range(2000):
        recorder.emit(batch(serial, size=SIZE))
    assert recorder.statistics().queued_bytes > 0


class StuckSink(MemorySink):
    """A sink on a mount that does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()

    async def write(self, append: Append) -> None:
        """Never return."""
        self.reached.set()
        threading.Event().wait()


def test_a_process_that_ends_with_a_stuck_sink_ends(tmp_path: Path) -> None:
    """A mount that does not answer holds up the exit for a few seconds, not for ever."""
    run_apart(leave_it_stuck)


def leave_it_stuck() -> None:
    """End with the recorder's thread waiting for a disk that never answers."""
    sink = StuckSink()
    recorder = Recorder(sink)
    for serial in range(100):
        recorder.emit(batch(serial))
    assert sink.reached.wait(PATIENCE_S)
