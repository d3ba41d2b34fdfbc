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
import threading
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import msgspec

from aegir_stream.backlog import Backlog, Command, Overflow
from aegir_stream.clock import SystemClock
from aegir_stream.errors import WriteLostError
from aegir_stream.events import Gap, Note
from aegir_stream.fork import in_forked_child
from aegir_stream.typing import Append, Clock, EventBatch, Sealed, Sink

__all__ = ["Overflow", "Recorder", "RecorderStatistics"]

P = ParamSpec("P")
T = TypeVar("T")

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
        self._backlog = Backlog(limit_bytes=queue_bytes, overflow=overflow, block_s=block_s)
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._unreported: Counter[tuple[str, str]] = Counter()
        self._totals = RecorderStatistics()
        self._wake: Callable[[], object] = lambda: None
        self._woken = False
        self._thread: threading.Thread | None = None
        self._open = False
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)
        in_forked_child(self, Recorder._unlock)

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
        """Write what is queued and close the sink; `False` if that took longer. Idempotent.

        `False` as well if the recorder's thread has died or cannot be started.
        """
        command = self.shield(self._command, lambda: self._sink.aclose(status=status), last=True)
        if command is None:
            return self._backlog.closed
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
        with self._lock:
            return msgspec.structs.replace(self._totals, queued_bytes=self._backlog.size_bytes)

    # -- to the other thread -----------------------------------------------------------------------

    def _enqueue(self, batch: EventBatch) -> bool:
        if self._backlog.closed:
            batch.release()
            return False
        refused = self._backlog.offer(batch)
        for each in refused:
            self._lose(each, "queue full")
            each.release()
        self.shield(self._start)
        self._wake_up()
        return all(each is not batch for each in refused)

    def _command(
        self, action: Callable[[], Awaitable[Any]], *, last: bool = False
    ) -> Command | None:
        command = Command(action, threading.Event(), last)
        if self._backlog.closed or not self._start() or not self._backlog.command(command):
            return None
        self._wake_up()
        return command

    def _start(self) -> bool:
        """Have the thread run; `False` if it has died."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=self.shield, args=(self._run,), name="aegir-recorder", daemon=True
                )
                thread.start()
                self._thread = thread
        return self._thread.is_alive()

    def _wake_up(self) -> None:
        # Waking costs a system call and hands the interpreter over: once is enough.
        with self._lock:
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
        with self._lock:
            self._wake = functools.partial(loop.call_soon_threadsafe, awake.set)
        awake.set()
        finished = False
        while not finished:
            await awake.wait()
            awake.clear()
            self._woken = False
            finished = await self._work_off()
        with self._lock:
            self._wake = lambda: None

    async def _work_off(self) -> bool:
        """Handle what is queued; tell whether the last command was among it."""
        while (item := self._backlog.take()) is not None:
            if not isinstance(item, Command):
                await self._record(item)
            elif await self._obey(item):
                return True
        return False

    async def _record(self, batch: EventBatch) -> None:
        written = False
        with self._shielded(batch):
            await self._ready()
            await self._write(batch)
            written = True
        with self._shielded():
            batch.release()
        if written:
            await self._report(batch.stream)

    async def _obey(self, command: Command) -> bool:
        """Run a command; tell whether it was the last."""
        with self._shielded():
            if self._open or not command.last:
                await self._ready()
                await self._report()
            command.result = await command.action()
        command.done.set()
        return command.last

    async def _ready(self) -> None:
        if not self._open:
            await self._sink.open()
            self._open = True

    async def _report(self, stream: str | None = None) -> None:
        """Tell the recorder's own losses in their streams, or in one; what fails is told later."""
        with self._lock:
            losses = list(self._unreported.items())
        for (lost_in, reason), records in losses:
            if stream in {None, lost_in}:
                with self._shielded():
                    await self._sink.mark(Gap(records=records, reason=reason), stream=lost_in)
                    with self._lock:
                        self._unreported -= Counter({(lost_in, reason): records})

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
        with self._lock:
            self._unreported[batch.stream, reason] += batch.records
            self._add(records_dropped=batch.records)

    def _count_error(self, last_error: str) -> None:
        first = self.statistics().errors == 0
        self._add(errors=1)
        with self._lock:
            self._totals = msgspec.structs.replace(self._totals, last_error=last_error)
        if first:
            _logger.warning("Recording failed; training goes on. %s", last_error)

    def _unlock(self) -> None:
        """Make a forked child's copy harmless: the parent's lock may be held there for ever."""
        self._lock = threading.RLock()
        self._wake = lambda: None

    def _add(self, **counts: float) -> None:
        with self._lock:
            fields = {name: getattr(self._totals, name) + n for name, n in counts.items()}
            self._totals = msgspec.structs.replace(self._totals, **fields)


def _close_at_exit(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder.close(status="stopped", timeout_s=5.0)
