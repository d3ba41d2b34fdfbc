"""What training code holds: synchronous, bounded, and never in the way.

Everything that training code hands over is queued and written by one daemon thread. Nothing raised
here reaches the caller: failures are counted, the last one is kept, the first one is logged, and
`Recorder.statistics` shows them. This is the only module that catches everything.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

import msgspec

from aegir_stream.clock import SystemClock
from aegir_stream.errors import WriteLostError
from aegir_stream.events import Gap, Note
from aegir_stream.typing import Append, Clock, EventBatch, Sealed, Sink

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["Overflow", "Recorder", "RecorderStatistics"]

P = ParamSpec("P")
T = TypeVar("T")

Overflow: TypeAlias = Literal["drop_newest", "drop_oldest", "block"]
"""What `Recorder.emit` does when the queue is full.

`drop_newest` refuses the batch at hand, `drop_oldest` the oldest ones in the queue; `block` waits
up to `block_s` for space, then refuses. What is refused is counted and becomes a `Gap` in the log.
"""

_logger = logging.getLogger("aegir_stream")

_QUEUE_BYTES = 256 << 20


class RecorderStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder has done so far.

    Attributes:
        records_written: records that the sink took.
        records_dropped: records refused by a full queue or lost by failed writes.
        batches: batches written.
        bytes_written: encoded bytes written.
        queued_bytes: memory held by the queue now.
        errors: failures of any kind that were kept from the caller.
        last_error: the latest of them, as text.
        encode_ms: CPU time that the recorder's thread used for encoding. Waiting is left out: for
            the disk because it costs training nothing, for the interpreter because training has it.
        write_ms: CPU time that it used in the sink.
    """

    records_written: int = 0
    records_dropped: int = 0
    batches: int = 0
    bytes_written: int = 0
    queued_bytes: int = 0
    errors: int = 0
    last_error: str | None = None
    encode_ms: float = 0.0
    write_ms: float = 0.0


class _Command(msgspec.Struct):
    """Something to do in order with the batches; `done` is set when it was tried."""

    action: Callable[[], Awaitable[Any]]
    done: threading.Event
    last: bool = False
    result: Any = None


class Recorder:
    """Queues batches for a sink and writes them from one daemon thread.

    Thread safety: every method may be called from any thread. In a forked child all of them do
    nothing. The recorder closes itself at interpreter exit.

    Args:
        sink: where the batches go; opened, used and closed by the recorder's thread only.
        queue_bytes: bound on the memory of queued batches.
        overflow: what to do when the bound is reached.
        block_s: how long `emit` may wait under the `block` policy.
        clock: where times come from.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        queue_bytes: int = _QUEUE_BYTES,
        overflow: Overflow = "drop_newest",
        block_s: float = 0.1,
        clock: Clock | None = None,
    ) -> None:
        self._sink = sink
        self._queue_bytes = queue_bytes
        self._overflow = overflow
        self._block_s = block_s
        self._clock = clock or SystemClock()
        self._queue: deque[EventBatch | _Command] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        self._unreported: Counter[tuple[str, str]] = Counter()
        self._totals = RecorderStatistics()
        self._wake: Callable[[], None] = lambda: None
        self._woken = False
        self._thread: threading.Thread | None = None
        self._open = False
        self._closed = False
        self._pid = os.getpid()
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)

    # -- training side -----------------------------------------------------------------------------

    def emit(self, batch: EventBatch) -> bool:
        """Queue a batch; `False` if it was refused. Never raises.

        Waits only under the `block` policy, and no longer than `block_s`.
        """
        return bool(self.shield(self._enqueue, batch))

    def note(self, kind: str, detail: dict[str, Any], *, stream: str = "sae_features") -> None:
        """Queue a `Note` for every reader of a stream. Never raises or waits."""
        note = Note(kind=kind, detail=detail)
        self.shield(self._command, lambda: self._sink.mark(note, stream=stream))

    def seal(self, *, checkpoint: str, step: int, timeout_s: float = 30.0) -> Sealed | None:
        """Write what is queued, seal the segment as a checkpoint's snapshot, and say what it holds.

        Waits until that is done, at most `timeout_s`; `None` if it failed or was not done by then
        (it is done later in the second case). Never raises.
        """
        command = self.shield(
            self._command, lambda: self._sink.seal(checkpoint=checkpoint, step=step)
        )
        done = command is not None and command.done.wait(timeout_s)
        return command.result if command is not None and done else None

    def flush(self, *, timeout_s: float = 10.0) -> bool:
        """Wait until everything queued before is visible to readers; `False` if it took longer."""
        command = self.shield(self._command, self._sink.flush)
        return command is not None and command.done.wait(timeout_s)

    def close(self, *, status: str = "finished", timeout_s: float = 10.0) -> bool:
        """Write what is queued and close the sink; `False` if that took longer. Idempotent."""
        command = self.shield(self._command, lambda: self._sink.aclose(status=status), last=True)
        if command is None:
            return True
        atexit.unregister(self._at_exit)
        done = command.done.wait(timeout_s)
        if done and self._thread:
            self._thread.join(timeout_s)
        return done

    def shield(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call `action` and return what it returns, or `None` where it fails. Never raises.

        This is how code of ours that runs inside a training loop is kept from breaking it.
        """
        result: T | None = None
        with self._shielded():
            result = action(*args, **kwargs)
        return result  # noqa: RET504 - the shield may have left it `None`

    def statistics(self) -> RecorderStatistics:
        """Return the counts so far."""
        with self._changed:
            return msgspec.structs.replace(self._totals, queued_bytes=self._queued_bytes)

    # -- the queue ---------------------------------------------------------------------------------

    def _enqueue(self, batch: EventBatch) -> bool:
        if self._closed or os.getpid() != self._pid:
            batch.release()
            return False
        with self._changed:
            admitted = self._make_room(batch)
            if admitted:
                self._queued_bytes += batch.size_bytes
                self._queue.append(batch)
        if not admitted:
            self._refuse(batch)
        self._start()
        return admitted

    def _make_room(self, batch: EventBatch) -> bool:
        """Apply the overflow policy; the lock is held. An empty queue admits any batch."""
        if self._overflow == "block":
            self._changed.wait_for(lambda: self._fits(batch), self._block_s)
        while self._overflow == "drop_oldest" and not self._fits(batch):
            self._refuse(self._oldest())
        return self._fits(batch)

    def _oldest(self) -> EventBatch:
        """Take the oldest batch out of the queue, past the commands."""
        for index, item in enumerate(self._queue):
            if not isinstance(item, _Command):
                del self._queue[index]
                self._queued_bytes -= item.size_bytes
                return item
        raise AssertionError("the queue holds bytes but no batch")

    def _fits(self, batch: EventBatch) -> bool:
        held = self._queued_bytes
        return held == 0 or held + batch.size_bytes <= self._queue_bytes

    def _refuse(self, batch: EventBatch) -> None:
        self._lose(batch, "queue full")
        batch.release()

    def _command(
        self, action: Callable[[], Awaitable[Any]], *, last: bool = False
    ) -> _Command | None:
        if os.getpid() != self._pid:
            return None
        command = _Command(action, threading.Event(), last)
        with self._changed:
            if self._closed:
                return None
            self._closed = last
            self._queue.append(command)
        self._start()
        return command

    def _start(self) -> None:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self.shield, args=(self._run,), name="aegir-recorder", daemon=True
                )
                self._thread.start()
            # Waking costs a system call and hands the interpreter over: once is enough.
            if not self._woken:
                self._woken = True
                self._wake()

    # -- the recorder's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        import asyncio  # noqa: PLC0415 - 40 modules that only a recording process needs

        # Debug mode would log every disk write that takes longer than 100 ms.
        with asyncio.Runner(debug=False) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        import asyncio  # noqa: PLC0415 - see _run

        loop, awake = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: _call_soon(loop, awake.set)
        awake.set()
        finished = False
        while not finished:
            await awake.wait()
            awake.clear()
            self._woken = False
            for item in self._taken():
                finished = await self._handle(item)
        with self._changed:
            self._wake = lambda: None

    def _taken(self) -> Iterator[EventBatch | _Command]:
        while True:
            with self._changed:
                if not self._queue:
                    return
                item = self._queue.popleft()
                if not isinstance(item, _Command):
                    self._queued_bytes -= item.size_bytes
                    self._changed.notify_all()
            yield item

    async def _handle(self, item: EventBatch | _Command) -> bool:
        """Write a batch or run a command; tell whether it was the last."""
        if isinstance(item, _Command):
            return await self._obey(item)
        with self._shielded(item):
            await self._ready()
            await self._write(item)
        with self._shielded():
            item.release()
        return False

    async def _obey(self, command: _Command) -> bool:
        with self._shielded():
            if self._open or not command.last:
                await self._ready()
            command.result = await command.action()
        command.done.set()
        return command.last

    async def _ready(self) -> None:
        if not self._open:
            await self._sink.open()
            self._open = True
        while self._unreported:
            await self._report_loss()

    async def _report_loss(self) -> None:
        """Have a loss of the recorder's own written into the log."""
        with self._changed:
            (stream, reason), records = self._unreported.popitem()
        try:
            await self._sink.mark(Gap(records=records, reason=reason), stream=stream)
        except OSError:
            with self._changed:
                self._unreported[stream, reason] += records
            raise

    async def _write(self, batch: EventBatch) -> None:
        started = self._clock.thread_time()
        data = batch.encode()
        encoded = self._clock.thread_time()
        await self._sink.write(
            Append(
                stream=batch.stream,
                data=data,
                records=batch.records,
                step=batch.step,
                pass_=batch.pass_,
            )
        )
        written = self._clock.thread_time()
        self._add(
            records_written=batch.records,
            batches=1,
            bytes_written=len(data),
            encode_ms=1e3 * (encoded - started),
            write_ms=1e3 * (written - encoded),
        )

    # -- failures ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _shielded(self, batch: EventBatch | None = None) -> Iterator[None]:
        """Keep what fails inside from the caller; count it, and the records of `batch` as lost."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the one boundary to the training loop
            last_error = f"{type(error).__name__}: {error}"
            self._count_error(last_error)
            if isinstance(error, WriteLostError) and batch:
                # The sink wrote a part and reports the rest by itself.
                kept, lost = batch.records - error.records_lost, error.records_lost
                self._add(records_written=kept, records_dropped=lost)
            elif batch:
                self._lose(batch, last_error)

    def _lose(self, batch: EventBatch, reason: str) -> None:
        """Count a batch as lost, to be told in the log as soon as that is possible."""
        with self._changed:
            self._unreported[batch.stream, reason] += batch.records
            self._add(records_dropped=batch.records)

    def _count_error(self, last_error: str) -> None:
        first = self.statistics().errors == 0
        self._add(errors=1)
        with self._changed:
            self._totals = msgspec.structs.replace(self._totals, last_error=last_error)
        if first:
            _logger.warning("Recording failed; training goes on. %s", last_error)

    def _add(self, **counts: float) -> None:
        with self._changed:
            fields = {name: getattr(self._totals, name) + n for name, n in counts.items()}
            self._totals = msgspec.structs.replace(self._totals, **fields)


def _call_soon(loop: AbstractEventLoop, action: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(action)


def _close_at_exit(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder.close(status="stopped", timeout_s=5.0)
