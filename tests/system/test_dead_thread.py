from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from aegir_stream.batch import Events
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import MemorySink
from aegir_stream.testing import make_record
from aegir_stream.typing import Append

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

LONG_S = 170.0
"""Longer than a test may take: who waits so long fails it."""


class DeadlySink(MemorySink):
    """A sink that ends its thread instead of failing, once `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.reached = threading.Event()

    async def write(self, append: Append) -> None:
        """Exit, as a library that thinks it owns the process does."""
        self.reached.set()
        assert self.gate.wait(20)
        raise SystemExit(3)


def batch() -> Events:
    """Return a record."""
    return Events("sae_features", (make_record(),), step=1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda recorder: recorder.flush(timeout_s=LONG_S),
        lambda recorder: recorder.seal(checkpoint="checkpoint-1", step=1, timeout_s=LONG_S),
        lambda recorder: recorder.close(timeout_s=LONG_S),
    ],
    ids=["flush", "seal", "close"],
)
def test_whoever_waits_for_a_thread_that_dies_is_released(
    wait: Callable[[Recorder], object],
) -> None:
    """A command that is queued when the recorder's thread ends returns at once, without success."""
    sink = DeadlySink()
    recorder = Recorder(sink)
    recorder.emit(batch())
    assert sink.reached.wait(20)
    answers: list[object] = []
    waiting = threading.Thread(target=lambda: answers.append(wait(recorder)))
    waiting.start()
    while not any(recorder._backlog._items):
        pass
    sink.gate.set()
    waiting.join(20)

    assert answers in ([False], [None])
    assert recorder.statistics().last_error == "The recorder's thread has ended early"


def test_a_command_that_kills_the_thread_is_answered() -> None:
    """The one that was being obeyed is answered as well."""

    class Deadly(MemorySink):
        async def flush(self) -> None:
            raise SystemExit(3)

    recorder = Recorder(Deadly())
    assert not recorder.flush(timeout_s=LONG_S)


def test_after_its_thread_has_died_a_recorder_refuses() -> None:
    """Nothing is queued for a thread that is gone, nobody waits for it, and closing says so."""
    sink = DeadlySink()
    recorder = Recorder(sink)
    sink.gate.set()
    recorder.emit(batch())
    thread = recorder._thread
    assert thread is not None
    thread.join(20)

    assert not recorder.emit(batch())
    assert recorder.statistics().queued_bytes == 0
    assert recorder.statistics().records_dropped == 2
    assert not recorder.flush(timeout_s=LONG_S)
    assert recorder.seal(checkpoint="checkpoint-1", step=1, timeout_s=LONG_S) is None
    assert not recorder.close(timeout_s=LONG_S)


def test_what_a_thread_that_died_left_is_counted_as_dropped() -> None:
    """The batch in its hand, those in the queue, and those that are refused after: each once."""
    sink = DeadlySink()
    recorder = Recorder(sink)
    recorder.emit(batch())
    assert sink.reached.wait(20)
    for _ in range(3):
        assert recorder.emit(batch())
    thread = recorder._thread
    assert thread is not None
    sink.gate.set()
    thread.join(20)
    for _ in range(2):
        assert not recorder.emit(batch())

    statistics = recorder.statistics()
    assert (statistics.records_written, statistics.records_dropped) == (0, 6)
    assert statistics.queued_bytes == 0
    assert not recorder.close(timeout_s=LONG_S)
