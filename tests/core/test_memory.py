"""Bounded everything. The large forms of these tests run in the soak (`make soak`)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink, MemorySink
from aegir_stream.testing import make_append, make_record
from aegir_stream.typing import Append
from core.resident import Measured
from core.runs import drive

TESTS = Path(__file__).parents[1]
ADDED_MIB = 16
CROWD_BOUND_MIB = 60

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="/proc tells how much memory a process needs"
)


def measure(what: str, run: RunDirectory, number: int = 0) -> Measured:
    """Do one thing with a run in a process that holds nothing else."""
    command = [sys.executable, "-m", "core.resident", what, str(run.root), str(number)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, cwd=TESTS, env=environment, timeout=170
    )
    return msgspec.json.decode(done.stdout, type=Measured)


def large_run(root: Path, *, mib: int) -> tuple[RunDirectory, int]:
    """Write a run of one segment, made of one append over and over; return how many records."""
    run = RunDirectory.at(root)
    sink = JournalSink(run)
    append = make_append(*(make_record(token=token) for token in range(4000)))
    appends = (mib << 20) // len(append.data) + 1
    drive(sink.open())
    for _ in range(appends):
        drive(sink.write(append))
    drive(sink.aclose())
    return run, appends * append.records


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, int]:
    """A run of 64 MiB in one segment."""
    return large_run(tmp_path_factory.mktemp("long"), mib=64)


@pytest.mark.parametrize("how", ["follow", "replay"])
def test_reading_a_long_segment_needs_no_more_memory_than_a_short_one(
    long_run: tuple[RunDirectory, int], how: str
) -> None:
    """Following or replaying 64 MiB adds less than a quarter of that to an idle interpreter."""
    run, records = long_run

    measured = measure(how, run)

    assert measured.records == (records, records)
    assert measured.peak_mib - measured.baseline_mib < ADDED_MIB


def test_a_reader_that_keeps_what_it_reads_is_seen(long_run: tuple[RunDirectory, int]) -> None:
    """The bound means something: keeping the chunks of the same run goes far over it."""
    run, _ = long_run

    measured = measure("hold", run)

    assert measured.peak_mib - measured.baseline_mib > 4 * ADDED_MIB


def test_two_hundred_slow_subscribers_cost_little_memory_and_few_threads(tmp_path: Path) -> None:
    """With 200 subscribers stopped at as many places a hub stays under 60 MiB resident.

    Those that go on then still get every record once, in order, read by a few threads.
    """
    run, records = large_run(tmp_path, mib=26)

    measured = measure("crowd", run, 200)

    assert measured.records == (records, records)
    assert measured.peak_mib < CROWD_BOUND_MIB
    assert measured.threads <= 8


class StuckSink(MemorySink):
    """A sink whose disk does not answer until it is released; it keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()
        self.records = 0

    async def write(self, append: Append) -> None:
        """Hang, as a dead mount does."""
        self.entered.set()
        self.released.wait(60)
        self.records += append.records


class Buffer(msgspec.Struct, kw_only=True):
    """A batch that holds what it says it holds."""

    content: bytes
    stream: str = "sae_features"
    records: int = 1
    step: int | None = 1
    pass_: str | None = None

    @property
    def size_bytes(self) -> int:
        """Memory held while queued."""
        return len(self.content)

    def encode(self) -> bytes:
        """Return the content."""
        return self.content

    def release(self) -> None:
        """Give the content back."""
        self.content = b""


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_a_recorder_with_a_stuck_disk_holds_what_it_may_and_counts_the_rest(overflow: Any) -> None:
    """While the disk hangs, no more than the queue's bound is held, and every loss is counted."""
    queue_bytes, batch_bytes, batches = 4 << 20, 64 << 10, 640
    sink = StuckSink()
    recorder = Recorder(sink, queue_bytes=queue_bytes, overflow=overflow)
    tracemalloc.start()
    try:
        recorder.emit(Buffer(content=b"x" * (batch_bytes - 1) + b"\n"))
        assert sink.entered.wait(10)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for number in range(batches - 1):
            recorder.emit(Buffer(content=bytes([number % 250]) * batch_bytes))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stuck = recorder.statistics()
    sink.released.set()
    assert recorder.close()
    done = recorder.statistics()

    assert peak - before < queue_bytes * 1.1
    assert stuck.queued_bytes <= queue_bytes
    assert stuck.records_dropped == batches - 1 - queue_bytes // batch_bytes
    assert done.records_written == sink.records
    assert done.records_written + done.records_dropped == batches
