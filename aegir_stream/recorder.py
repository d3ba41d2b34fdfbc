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
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

from aegir_stream.accounting import Account, RecorderStatistics
from aegir_stream.backlog import Backlog, Command, Overflow
from aegir_stream.batch import append_of
from aegir_stream.bell import Bell
from aegir_stream.clock import SystemClock
from aegir_stream.errors import WriteLostError
from aegir_stream.events import Note
from aegir_stream.fork import in_forked_child
from aegir_stream.typing import Clock, EventBatch, Sealed, Sink

__all__ = ["Overflow", "Recorder", "RecorderStatistics"]

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger("aegir_stream")

_QUEUE_BYTES = 256 << 20
_DIED = "The recorder's thread has ended early"


class Recorder:
    """Queues batches for a sink and writes them from one daemon thread.

    Thread safety: every method may be called from any thread, and from a signal handler. In a
    forked child all of them do nothing, and so they do on a copy that was made by pickle or
    deepcopy: one process, one recorder. The recorder closes itself at interpreter exit.

    Args:
        sink: where the batches go; opened, used and closed by the recorder's thread only.
        queue_bytes: bound on the memory of queued batches.
        overflow: what to do when the bound is reached.
        block_s: how long `emit` may wait under the `block` policy.
        flush_every_s: how long after a write the sink is flushed, at most, whether or not more
            comes. Nothing is done while nothing is written.
        clock: where times come from.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        queue_bytes: int = _QUEUE_BYTES,
        overflow: Overflow = "drop_newest",
        block_s: float = 0.1,
        flush_every_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self._sink = sink
        self._backlog = Backlog(limit_bytes=queue_bytes, overflow=overflow, block_s=block_s)
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._flush_every_s = flush_every_s
        self._flush_due: float | None = None
        self._account = Account()
        self._bell = Bell()
        self._thread: threading.Thread | None = None
        self._obeyed: Command | None = None
        self._in_hand: EventBatch | None = None
        self._died = False
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
        """Wait until everything queued before is as safe as the sink makes it (`Sink.flush`).

        `False` if it took longer or failed.
        """
        command = self.shield(self._command, self._flush)
        return command is not None and command.done.wait(timeout_s) and bool(command.result)

    def close(self, *, status: str = "finished", timeout_s: float = 10.0) -> bool:
        """Write what is queued and close the sink; `False` if that took longer. Idempotent.

        `False` as well if the recorder's thread has died or cannot be started.
        """
        command = self.shield(self._command, lambda: self._sink.aclose(status=status), last=True)
        if command is None:
            return self._backlog.closed and not self._died
        atexit.unregister(self._at_exit)
        done = command.done.wait(timeout_s)
        if done and self._thread:
            self._thread.join(timeout_s)
        return done and not self._died

    def __reduce__(self) -> tuple[Callable[[], Recorder], tuple[()]]:
        """Copy and pickle as a recorder that is closed: what a worker was handed records nothing.

        Its sink, queue and counts stay here.
        """
        return _closed, ()

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
        return self._account.statistics(queued_bytes=self._backlog.size_bytes)

    # -- to the other thread -----------------------------------------------------------------------

    def _enqueue(self, batch: EventBatch) -> bool:
        if self._backlog.closed:
            self._refuse(batch, _DIED if self._died else None)
            return False
        refused = self._backlog.offer(batch)
        for each in refused:
            self._refuse(each, "queue full")
        self.shield(self._start)
        self._wake_up()
        return all(each is not batch for each in refused)

    def _refuse(self, batch: EventBatch, reason: str | None) -> None:
        """Let go of a batch that will not be written; count it, unless recording is over."""
        if reason:
            self._account.lose(batch, reason)
        batch.release()

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
                self._thread = threading.Thread(
                    target=self.shield, args=(self._run,), name="aegir-recorder", daemon=True
                )
                try:
                    # A signal handler that emits meanwhile must not start a second one.
                    self._thread.start()
                finally:
                    if self._thread.ident is None:
                        self._thread = None
        # `Thread.is_alive` would take a thread for ended if Ctrl-C came while it looks.
        return not self._died

    def _wake_up(self) -> None:
        self._bell.ring()

    # -- the recorder's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        import asyncio  # noqa: PLC0415 - 40 modules that only a recording process needs

        with self._lock:
            if threading.current_thread() is not self._thread:
                return  # Ctrl-C came while it was started: the next batch starts another.
        finished = False
        try:
            # Debug mode would log every disk write that takes longer than 100 ms.
            with asyncio.Runner(debug=False) as runner:
                runner.run(self._serve())
            finished = True
        finally:
            self._release(died=not finished)

    def _release(self, *, died: bool) -> None:
        """Let nobody wait for what is not done any more, whatever has ended the thread."""
        self._died = died
        for command in filter(None, [*self._backlog.close(), self._obeyed]):
            command.done.set()
        if died:
            self._lose_what_is_left()
            self._count_error(_DIED)

    def _lose_what_is_left(self) -> None:
        """Count what a thread that has died will not write."""
        for left in (self._in_hand, *iter(self._backlog.take, None)):
            if isinstance(left, EventBatch):
                self._refuse(left, _DIED)

    async def _serve(self) -> None:
        finished = False
        with self._bell.heard() as awake:
            while not finished:
                await self._bell.wait(awake, timeout_s=self._flush_in_s())
                finished = await self._work_off()

    def _flush_in_s(self) -> float | None:
        """Return how long a flush may wait; `None` if none is due."""
        due = self._flush_due
        return None if due is None else max(0.0, due - self._clock.monotonic())

    async def _work_off(self) -> bool:
        """Handle what is queued; tell whether the last command was among it."""
        while (item := self._backlog.take()) is not None:
            await self._flush_when_due()
            if self._flush_due is None:
                self._flush_due = self._clock.monotonic() + self._flush_every_s
            if not isinstance(item, Command):
                await self._record(item)
            elif await self._obey(item):
                return True
        await self._flush_when_due()
        return False

    async def _flush_when_due(self) -> None:
        if self._flush_due is not None and self._clock.monotonic() >= self._flush_due:
            with self._shielded():
                await self._flush()

    async def _flush(self) -> bool:
        self._flush_due = None
        if self._open:
            await self._sink.flush()
        return True

    async def _record(self, batch: EventBatch) -> None:
        written = False
        self._in_hand = batch
        with self._shielded(batch):
            await self._ready()
            await self._write(batch)
            written = True
        self._in_hand = None
        with self._shielded():
            batch.release()
        if written:
            await self._report(batch.stream)

    async def _obey(self, command: Command) -> bool:
        """Run a command; tell whether it was the last."""
        self._obeyed = command
        with self._shielded():
            if self._open or not command.last:
                await self._ready()
                await self._report()
            command.result = await command.action()
        command.done.set()
        self._obeyed = None
        return command.last

    async def _ready(self) -> None:
        if not self._open:
            await self._sink.open()
            self._open = True

    async def _report(self, stream: str | None = None) -> None:
        """Tell the recorder's own losses in their streams, or in one; what fails is told later."""
        for lost_in, gap in self._account.take_losses(stream):
            told = False
            with self._shielded():
                await self._sink.mark(gap, stream=lost_in)
                told = True
            if not told:
                self._account.put_back(lost_in, gap)

    async def _write(self, batch: EventBatch) -> None:
        started = self._clock.thread_time()
        data = batch.encode()
        encoded = self._clock.thread_time()
        await self._sink.write(append_of(batch, data))
        written = self._clock.thread_time()
        self._account.wrote(batch, data, encode_s=encoded - started, write_s=written - encoded)

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
                self._account.wrote_part(batch, error)
            elif batch:
                self._account.lose(batch, last_error)

    def _count_error(self, last_error: str) -> None:
        if self._account.add_error(last_error) == 1:
            _logger.warning("Recording failed; training goes on. %s", last_error)

    def _unlock(self) -> None:
        """Make a forked child's copy harmless: the parent's locks may be held there for ever."""
        self._lock = threading.RLock()
        self._account.unlock()
        self._bell.silence()


def _closed() -> Recorder:
    """Return a recorder that is closed already; nothing ever reaches its sink."""
    recorder = Recorder(cast("Sink", None))
    recorder._backlog.close()  # noqa: SLF001 - it is made here
    atexit.unregister(recorder._at_exit)  # noqa: SLF001 - likewise
    return recorder


def _close_at_exit(reference: weakref.ref[Recorder]) -> None:
    if recorder := reference():
        recorder.close(status="stopped", timeout_s=5.0)
