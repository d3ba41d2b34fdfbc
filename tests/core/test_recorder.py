from __future__ import annotations

import asyncio
import errno
import logging
import threading
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.accounting import Account
from aegir_stream.backlog import Command
from aegir_stream.batch import Events
from aegir_stream.events import Close, Corrupt, Gap, Note, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Overflow, Recorder
from aegir_stream.sinks import JournalSink, MemorySink
from aegir_stream.source import RunSource
from aegir_stream.testing import ManualClock, make_record
from aegir_stream.typing import Append
from core.runs import drain, records_in


def batch(*, size: int = 1, step: int = 1) -> Events:
    """Return a batch of records."""
    records = tuple(make_record(step=step, token=token) for token in range(size))
    return Events("sae_features", records, step=step)


a_refused_one = Gap(records=1, reason="queue full", first_step=2, last_step=2)


class GatedSink(MemorySink):
    """A sink that a test holds up: writes wait until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.reached = threading.Event()

    async def write(self, append: Append) -> None:
        """Wait for the gate, then keep the append."""
        self.reached.set()
        assert self.gate.wait(20)
        await super().write(append)


class BrokenSink(MemorySink):
    """A sink whose disk is full until `mended`."""

    mended = False

    async def write(self, append: Append) -> None:
        """Fail, or keep the append."""
        if not self.mended:
            raise OSError(errno.ENOSPC, "No space left on device")
        await super().write(append)


class WeepingBatch(Events, frozen=True):
    """A batch that cannot be encoded."""

    def encode(self) -> bytes:
        """Fail."""
        raise RuntimeError("cannot encode")


def held_up(sink: GatedSink, recorder: Recorder) -> None:
    """Return when the recorder's thread is stuck in the sink, its queue empty."""
    recorder.emit(batch(step=0))
    assert sink.reached.wait(20)


def test_what_is_emitted_is_written_in_order() -> None:
    """Batches reach the sink in the order of emit, and closing writes what is queued."""
    sink = MemorySink()
    recorder = Recorder(sink)
    for step in range(100):
        assert recorder.emit(batch(step=step))
    assert recorder.close()

    steps = [codec.decode(line, SAELogRecord).step for line in sink.lines("sae_features")]
    assert steps == list(range(100))
    assert sink.status == "finished"
    assert recorder.statistics().records_written == 100


def test_flush_returns_when_the_sink_has_everything() -> None:
    """After a flush every batch emitted before it is in the sink."""
    sink = MemorySink()
    recorder = Recorder(sink)
    for step in range(20):
        recorder.emit(batch(step=step))

    assert recorder.flush()
    assert len(sink.appends) == 20
    recorder.close()


def test_a_failing_sink_never_reaches_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    """Errors are counted with the records they cost, and logged once."""
    recorder = Recorder(BrokenSink())
    with caplog.at_level(logging.WARNING, logger="aegir_stream"):
        for step in range(5):
            assert recorder.emit(batch(step=step, size=2))
        recorder.flush()
    recorder.close()

    statistics = recorder.statistics()
    assert (statistics.errors, statistics.records_dropped) == (5, 10)
    assert "No space left on device" in (statistics.last_error or "")
    assert len(caplog.records) == 1


def test_a_batch_that_cannot_be_encoded_costs_only_itself() -> None:
    """The batches around it are written."""
    sink = MemorySink()
    recorder = Recorder(sink)
    recorder.emit(batch(step=1))
    recorder.emit(WeepingBatch("sae_features", (make_record(),)))
    recorder.emit(batch(step=2))
    recorder.close()

    assert len(sink.appends) == 2
    statistics = recorder.statistics()
    assert (statistics.errors, statistics.records_dropped, statistics.records_written) == (1, 1, 2)


def test_shield_returns_the_result_or_none() -> None:
    """Code of ours in a training loop is called behind the shield."""
    recorder = Recorder(MemorySink())

    assert recorder.shield(lambda x: x + 1, 2) == 3
    assert recorder.shield(lambda: 1 / 0) is None
    assert recorder.statistics().last_error == "ZeroDivisionError: division by zero"
    recorder.close()


def test_a_full_queue_refuses_the_newest() -> None:
    """`drop_newest` keeps what is queued; the loss becomes a gap once writing works again."""
    sink = GatedSink()
    recorder = Recorder(sink, queue_bytes=3 * 1024, overflow="drop_newest")
    held_up(sink, recorder)
    admitted = [recorder.emit(batch(step=step)) for step in range(1, 6)]
    sink.gate.set()
    recorder.close()

    assert admitted == [True, True, True, False, False]
    assert [append.step for append in sink.appends] == [0, 1, 2, 3]
    gap = Gap(records=2, reason="queue full", first_step=4, last_step=5)
    assert sink.marks == [("sae_features", gap)]
    assert recorder.statistics().records_dropped == 2


def test_a_full_queue_drops_the_oldest() -> None:
    """`drop_oldest` makes room for what is new."""
    sink = GatedSink()
    recorder = Recorder(sink, queue_bytes=3 * 1024, overflow="drop_oldest")
    held_up(sink, recorder)
    admitted = [recorder.emit(batch(step=step)) for step in range(1, 6)]
    sink.gate.set()
    recorder.close()

    assert all(admitted)
    assert [append.step for append in sink.appends] == [0, 3, 4, 5]
    assert recorder.statistics().records_dropped == 2


def test_blocking_waits_no_longer_than_its_deadline() -> None:
    """`block` waits for room until its deadline, then refuses."""
    sink = GatedSink()
    recorder = Recorder(sink, queue_bytes=1024, overflow="block", block_s=0.01)
    held_up(sink, recorder)

    assert recorder.emit(batch(step=1))
    assert not recorder.emit(batch(step=2))
    sink.gate.set()
    recorder.close()
    assert [append.step for append in sink.appends] == [0, 1]


def test_a_batch_larger_than_the_queue_is_taken_when_it_is_empty() -> None:
    """The bound never makes a single large step impossible."""
    sink = MemorySink()
    recorder = Recorder(sink, queue_bytes=10)

    assert recorder.emit(batch(size=5))
    recorder.close()
    assert len(sink.lines("sae_features")) == 5


def test_closing_a_stuck_sink_returns() -> None:
    """`close` gives up after its timeout and says so; the process is never hung."""
    sink = GatedSink()
    recorder = Recorder(sink)
    held_up(sink, recorder)

    assert not recorder.close(timeout_s=0.01)
    assert recorder.seal(checkpoint="checkpoint-1", step=1) is None
    sink.gate.set()


def test_a_closed_recorder_refuses_quietly() -> None:
    """Emitting after the end does nothing, and closing twice is fine."""
    sink = MemorySink()
    recorder = Recorder(sink)
    recorder.close()

    assert not recorder.emit(batch())
    assert recorder.close()
    assert sink.appends == []


def test_notes_stand_between_the_batches() -> None:
    """A note reaches its stream in order."""
    sink = MemorySink()
    recorder = Recorder(sink)
    recorder.note("self_test", {"passes": ["loss"]})
    recorder.close()

    assert sink.marks == [("sae_features", Note(kind="self_test", detail={"passes": ["loss"]}))]


def test_a_seal_holds_everything_emitted_before(tmp_path: Path) -> None:
    """Sealing writes what is queued first; what comes later is in the live tail."""
    run = RunDirectory.at(tmp_path)
    recorder = Recorder(JournalSink(run))
    recorder.emit(batch(step=1, size=4))
    sealed = recorder.seal(checkpoint="checkpoint-1", step=1)
    recorder.emit(batch(step=2, size=2))
    recorder.close()

    assert sealed is not None
    assert sealed.records == 4
    assert len(records_in(drain(RunSource(run)))) == 2
    assert recorder.statistics().errors == 0


def test_an_output_directory_that_cannot_be_made_is_survived(tmp_path: Path) -> None:
    """A run without a usable directory trains on; the error names the directory and the remedy."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    recorder = Recorder(JournalSink(RunDirectory.at(blocked / "run")))
    recorder.emit(batch(size=3))
    recorder.close()

    statistics = recorder.statistics()
    assert statistics.records_dropped == 3
    assert statistics.errors >= 1


def test_a_run_whose_directory_appears_is_recorded_from_then_on(tmp_path: Path) -> None:
    """Opening is tried again with every batch, and what was lost before is told."""
    blocked = tmp_path / "run"
    blocked.write_text("in the way")
    run = RunDirectory.at(blocked)
    recorder = Recorder(JournalSink(run))
    recorder.emit(batch(step=1, size=3))
    recorder.flush()
    blocked.unlink()
    recorder.emit(batch(step=2, size=2))
    recorder.close()

    deliveries = drain(RunSource(run, start="start"))
    assert [record.step for record in records_in(deliveries)] == [2, 2]
    assert [d.records for d in deliveries if isinstance(d, Gap)] == [3]


def test_a_stream_that_cannot_be_written_costs_only_itself(tmp_path: Path) -> None:
    """Its losses cannot be told, and yet the other streams are written, sealed and closed."""
    run = RunDirectory.at(tmp_path)
    run.live("completions").mkdir()
    recorder = Recorder(JournalSink(run))
    for stream in ("completions", "unheard_of"):
        recorder.emit(Events(stream, (make_record(),)))
    recorder.emit(batch(size=3))
    sealed = recorder.seal(checkpoint="checkpoint-1", step=1)

    assert recorder.close()
    assert sealed is not None
    assert sealed.records == 3
    statistics = recorder.statistics()
    assert (statistics.records_written, statistics.records_dropped) == (3, 2)
    last = run.live("sae_features").read_bytes().splitlines()[-1]
    assert codec.decode_control(last) == Close(status="finished")


def test_a_stream_with_a_broken_encoder_costs_only_itself(tmp_path: Path) -> None:
    """Its batch is lost and told, whatever it is; the streams beside it and its next are whole."""

    class Cut(Events, frozen=True):
        def encode(self) -> bytes:
            return super().encode()[:-5]

    run = RunDirectory.at(tmp_path)
    recorder = Recorder(JournalSink(run))
    recorder.emit(Cut("completions", (make_record(), make_record()), step=1))
    recorder.emit(batch(step=1))
    recorder.emit(Events("completions", (make_record(),), step=2))
    recorder.close()

    assert len(records_in(drain(RunSource(run, start="start")))) == 1
    deliveries = drain(RunSource(run, "completions", start="start"))
    assert len(records_in(deliveries)) == 1
    gaps = [d for d in deliveries if isinstance(d, Gap)]
    assert [(gap.records, gap.first_step, gap.last_step) for gap in gaps] == [(2, 1, 1)]
    assert not [d for d in deliveries if isinstance(d, Corrupt)]
    assert recorder.statistics().records_dropped == 2


def test_a_loss_is_told_as_soon_as_its_stream_is_written() -> None:
    """Readers learn of it with the next batch, not when the run ends."""
    told = threading.Event()

    class Listening(GatedSink):
        async def mark(self, event: Gap | Note, *, stream: str) -> None:
            await super().mark(event, stream=stream)
            told.set()

    sink = Listening()
    recorder = Recorder(sink, queue_bytes=1024)
    held_up(sink, recorder)
    assert [recorder.emit(batch(step=step)) for step in (1, 2)] == [True, False]
    sink.gate.set()

    assert told.wait(20)
    recorder.close()
    assert sink.marks == [("sae_features", a_refused_one)]


def test_a_loss_that_could_not_be_told_is_told_later() -> None:
    """It is kept until its stream takes the mark."""

    class Speechless(GatedSink):
        dumb = True

        async def mark(self, event: Gap | Note, *, stream: str) -> None:
            if self.dumb:
                raise OSError(errno.ENOSPC, "No space left on device")
            await super().mark(event, stream=stream)

    sink = Speechless()
    recorder = Recorder(sink, queue_bytes=1024)
    held_up(sink, recorder)
    assert [recorder.emit(batch(step=step)) for step in (1, 2)] == [True, False]
    sink.gate.set()
    recorder.flush()
    assert sink.marks == []
    sink.dumb = False
    recorder.close()

    assert sink.marks == [("sae_features", a_refused_one)]


def test_closing_ends_an_emit_that_waits_for_room() -> None:
    """What waits for room when the last command is queued is refused, not left behind it."""
    sink = GatedSink()
    recorder = Recorder(sink, queue_bytes=1024, overflow="block", block_s=20.0)
    held_up(sink, recorder)
    recorder.emit(batch(step=1))
    admitted: list[bool] = []
    waiting = threading.Thread(target=lambda: admitted.append(recorder.emit(batch(step=2))))
    waiting.start()
    while not recorder._backlog._changed._waiters:  # type: ignore[attr-defined]
        pass
    recorder.close(timeout_s=0)
    waiting.join(20)
    sink.gate.set()
    thread = recorder._thread
    assert thread is not None
    thread.join(20)

    assert not thread.is_alive()
    assert admitted == [False]
    assert [append.step for append in sink.appends] == [0, 1]
    assert recorder.statistics().records_dropped == 1
    assert sink.status == "finished"


def test_a_thread_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process at its limit of threads waits for nothing, and records once it can."""
    sink = MemorySink()
    recorder = Recorder(sink)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", _refuse_to_start)
        assert recorder.emit(batch())
        assert recorder.seal(checkpoint="checkpoint-1", step=1, timeout_s=60) is None
        assert not recorder.close(timeout_s=60)
    assert recorder.emit(batch())
    assert recorder.close()

    assert len(sink.appends) == 2


def _refuse_to_start(thread: threading.Thread) -> None:
    raise RuntimeError(f"can't start {thread.name}")


def test_a_dead_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no loop can be made, commands fail at once."""
    recorder = Recorder(MemorySink())
    monkeypatch.setattr(asyncio, "Runner", _no_loop)
    lost = batch()
    recorder.emit(lost)
    assert recorder._thread is not None
    recorder._thread.join(20)

    assert recorder.seal(checkpoint="checkpoint-1", step=1, timeout_s=0.01) is None
    assert not recorder.close(timeout_s=0.01)
    assert recorder._backlog.take() is None
    assert recorder.statistics().records_dropped == lost.records
    assert recorder.statistics().last_error == "OSError: [Errno 24] Too many open files"


def _no_loop(*, debug: bool) -> None:
    assert not debug
    raise OSError(errno.EMFILE, "Too many open files")


# -- flushing -------------------------------------------------------------------------------------


class FlushedSink(MemorySink):
    """A sink that says what was done to it; a write takes four seconds of its clock."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock
        self.deeds: list[str] = []
        self.flushed = threading.Event()

    async def write(self, append: Append) -> None:
        """Keep the append, slowly."""
        await super().write(append)
        self.deeds.append("write")
        self.clock.now += 4

    async def flush(self) -> None:
        """Say so."""
        self.deeds.append("flush")
        self.flushed.set()


def test_a_busy_recorder_flushes_at_intervals() -> None:
    """Not after every write, and not only when nothing is left to write."""
    clock = ManualClock()
    sink = FlushedSink(clock)
    recorder = Recorder(sink, flush_every_s=10, clock=clock)
    for step in range(6):
        recorder._backlog.offer(batch(step=step))
    recorder.emit(batch(step=6))
    recorder.close()

    assert sink.deeds == [*["write"] * 3, "flush", *["write"] * 3, "flush", "write"]


def test_what_was_written_last_is_flushed_though_nothing_follows() -> None:
    """The thread wakes for it, once, and then sleeps for as long as there is nothing to do."""
    sink = FlushedSink(ManualClock())
    recorder = Recorder(sink, flush_every_s=0.01)
    recorder.emit(batch())

    assert sink.flushed.wait(20)
    assert recorder._flush_due is None
    assert recorder.close()
    assert sink.deeds == ["write", "flush"]


def test_a_flush_on_request_is_not_done_twice() -> None:
    """It counts as the one that is due."""
    clock = ManualClock()
    sink = FlushedSink(clock)
    recorder = Recorder(sink, flush_every_s=3600, clock=clock)
    recorder.emit(batch())

    assert recorder.flush()
    assert recorder._flush_due is None
    recorder.close()
    assert sink.deeds == ["write", "flush"]


def test_a_flush_that_fails_is_counted_and_tried_again() -> None:
    """The caller of `flush` is told, and recording goes on."""

    class Unflushable(MemorySink):
        broken = True

        async def flush(self) -> None:
            if self.broken:
                raise OSError(errno.EIO, "Input/output error")

    sink = Unflushable()
    recorder = Recorder(sink, flush_every_s=3600)
    recorder.emit(batch())
    assert not recorder.flush()
    sink.broken = False
    assert recorder.flush()
    recorder.close()

    assert recorder.statistics().errors == 1
    assert len(sink.appends) == 1


# -- overflow -------------------------------------------------------------------------------------


class SteppedSink(MemorySink):
    """A sink that writes when a test lets it, and fails when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)
        self.broken = False

    async def write(self, append: Append) -> None:
        """Wait to be let, then keep the append or fail."""
        self.arrived.release()
        assert self.permits.acquire(timeout=20)
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        await super().write(append)


class Stepped:
    """A recorder whose thread a test moves from write to write."""

    def __init__(self, *, overflow: Overflow, bound: int) -> None:
        self.sink = SteppedSink()
        self.recorder = Recorder(self.sink, queue_bytes=bound * 1024, overflow=overflow, block_s=0)
        self.at_a_write = False

    def emit(self, step: int, *, size: int) -> None:
        """Emit a batch; return when it is queued, refused, or waits to be written."""
        self.recorder.emit(batch(step=step, size=size))
        if not self.at_a_write:
            self._await_a_write()

    def write(self) -> None:
        """Let the write that waits happen; return when the next one waits, if any is queued."""
        if self.at_a_write:
            items = self.recorder._backlog._items
            self.at_a_write = any(not isinstance(item, Command) for item in items)
            self.sink.permits.release()
            if self.at_a_write:
                self._await_a_write()

    def _await_a_write(self) -> None:
        assert self.sink.arrived.acquire(timeout=20)
        self.at_a_write = True


deeds = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.integers(1, 5)),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("break"), st.booleans()),
        st.tuples(st.just("note"), st.just(0)),
        st.tuples(st.just("seal"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(
    overflow=st.sampled_from(["drop_newest", "drop_oldest", "block"]),
    bound=st.integers(0, 6),
    schedule=deeds,
)
def test_what_is_emitted_is_written_or_stands_in_a_gap(
    overflow: Overflow, bound: int, schedule: list[tuple[str, int]]
) -> None:
    """Under every policy, whatever is slow, stuck, failing or larger than the bound."""
    stepped = Stepped(overflow=overflow, bound=bound)
    sink, recorder = stepped.sink, stepped.recorder
    emitted = 0
    for step, (deed, number) in enumerate(schedule):
        if deed == "emit":
            stepped.emit(step, size=number)
            emitted += number
        elif deed == "write":
            stepped.write()
        elif deed == "break":
            sink.broken = bool(number)
        elif deed == "note":
            recorder.note("hello", {})
        elif deed == "seal":
            assert recorder.seal(checkpoint=f"checkpoint-{step}", step=step, timeout_s=0) is None
        assert recorder._backlog.size_bytes <= max(bound, 5) * 1024
    sink.broken = False
    while stepped.at_a_write:
        stepped.write()
    assert recorder.close(timeout_s=20)

    written = [record.step for record in map(_decoded, sink.lines("sae_features"))]
    gaps = [event for _, event in sink.marks if isinstance(event, Gap)]
    assert len(written) + sum(gap.records for gap in gaps) == emitted
    statistics = recorder.statistics()
    assert statistics.records_written == len(written)
    assert statistics.records_dropped == sum(gap.records for gap in gaps)
    assert written == sorted(written)
    assert all(gap.first_step is not None and gap.last_step is not None for gap in gaps)


def _decoded(line: bytes) -> SAELogRecord:
    return codec.decode(line, SAELogRecord)


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_dropping_never_waits_and_never_drops_a_command(overflow: Overflow) -> None:
    """A full queue before a stuck sink costs batches only; notes and seals are done in order."""
    sink = GatedSink()
    recorder = Recorder(sink, queue_bytes=1024, overflow=overflow)
    held_up(sink, recorder)
    recorder.note("before", {})
    recorder.seal(checkpoint="checkpoint-1", step=1, timeout_s=0)
    for step in range(1, 4):
        recorder.emit(batch(step=step))
    recorder.note("after", {})
    sink.gate.set()
    recorder.close()

    assert [append.step for append in sink.appends] == [0, 1 if overflow == "drop_newest" else 3]
    assert sink.checkpoints == ["checkpoint-1"]
    notes = [event.kind for _, event in sink.marks if isinstance(event, Note)]
    assert notes == ["before", "after"]


def test_blocking_goes_on_when_there_is_room() -> None:
    """A slow sink under `block` costs time and no record."""
    sink = SteppedSink()
    recorder = Recorder(sink, queue_bytes=1024, overflow="block", block_s=20)
    admitted: list[bool] = []
    training = threading.Thread(
        target=lambda: admitted.extend(recorder.emit(batch(step=step)) for step in range(10))
    )
    training.start()
    for _ in range(10):
        assert sink.arrived.acquire(timeout=20)
        sink.permits.release()
    training.join(20)
    recorder.close()

    assert admitted == [True] * 10
    assert [append.step for append in sink.appends] == [*range(10)]


def test_a_batch_larger_than_the_bound_waits_for_an_empty_queue() -> None:
    """It takes the place of everything else under `drop_oldest`, and is refused otherwise."""
    for overflow, expected in (("drop_oldest", [0, 2]), ("drop_newest", [0, 1])):
        sink = GatedSink()
        recorder = Recorder(sink, queue_bytes=2 * 1024, overflow=cast("Overflow", overflow))
        held_up(sink, recorder)
        recorder.emit(batch(step=1))
        recorder.emit(batch(step=2, size=5))
        sink.gate.set()
        recorder.close()

        assert [append.step for append in sink.appends] == expected


def test_a_gap_names_the_steps_that_are_known() -> None:
    """From the first to the last; batches of several steps do not hide them."""
    account = Account()
    for step in (None, 7, 5, None):
        account.lose(Events("sae_features", (make_record(),), step=step), "queue full")
    account.lose(Events("sae_features", (make_record(),)), "cannot encode")

    assert account.take_losses("completions") == []
    assert account.take_losses("sae_features") == [
        ("sae_features", Gap(records=4, reason="queue full", first_step=5, last_step=7)),
        ("sae_features", Gap(records=1, reason="cannot encode")),
    ]
    assert account.take_losses() == []
