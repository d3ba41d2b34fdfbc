"""What waits for the recorder's thread: batches, bounded by the memory they hold, and commands."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

import msgspec

from aegir_stream.fork import in_forked_child
from aegir_stream.typing import EventBatch

__all__ = ["Backlog", "Command", "Overflow"]

Overflow: TypeAlias = Literal["drop_newest", "drop_oldest", "block"]
"""What `Recorder.emit` does when the queue is full.

`drop_newest` refuses the batch at hand, `drop_oldest` the oldest ones in the queue; `block` waits
up to `block_s` for space, then refuses. What is refused is counted and becomes a `Gap` in the log.
"""


class Command(msgspec.Struct):
    """Something to do in order with the batches; `done` is set when it was tried."""

    action: Callable[[], Awaitable[Any]]
    done: threading.Event
    last: bool = False
    result: Any = None


class Backlog:
    """A queue of batches and commands. Nothing gets behind the last command.

    Thread safety: every method may be called from any thread. In a forked child it is closed and
    empty, whatever the parent's threads were doing.

    Args:
        limit_bytes: bound on the memory of queued batches.
        overflow: what to do when the bound is reached.
        block_s: how long `offer` may wait under the `block` policy.
    """

    def __init__(self, *, limit_bytes: int, overflow: Overflow, block_s: float) -> None:
        self._limit_bytes = limit_bytes
        self._overflow = overflow
        self._block_s = block_s
        self._items: deque[EventBatch | Command] = deque()
        # `with` a condition is Python code, in which Ctrl-C would leave the lock taken for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.size_bytes = 0
        self.closed = False
        in_forked_child(self, Backlog._abandon)

    def offer(self, batch: EventBatch) -> list[EventBatch]:
        """Queue a batch; return what was refused for it: the batch itself, or older ones."""
        with self._lock:
            refused = self._make_room(batch)
            # Waiting for room gives up the lock, so the backlog may have been closed meanwhile.
            if self.closed or not self._fits(batch):
                return [*refused, batch]
            # Asked before: a signal handler that emits could run in between.
            size_bytes = batch.size_bytes
            self.size_bytes += size_bytes
            self._items.append(batch)
        return refused

    def command(self, command: Command) -> bool:
        """Queue a command; `False` if the last one was queued before."""
        with self._lock:
            if self.closed:
                return False
            self.closed = command.last
            self._items.append(command)
            self._changed.notify_all()
        return True

    def take(self) -> EventBatch | Command | None:
        """Return the oldest item, taken out; `None` if there is none."""
        with self._lock:
            if not self._items:
                return None
            item = self._items.popleft()
            if not isinstance(item, Command):
                self.size_bytes -= item.size_bytes
                self._changed.notify_all()
            return item

    def close(self) -> list[Command]:
        """Refuse everything from now on; return the commands that were waiting, taken out."""
        with self._lock:
            self.closed = True
            waiting = [item for item in self._items if isinstance(item, Command)]
            self._items = deque(item for item in self._items if not isinstance(item, Command))
            self._changed.notify_all()
        return waiting

    def _abandon(self) -> None:
        """Close and empty it: a child has no thread to write, and the lock may be held for ever."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._items = deque()
        self.size_bytes = 0
        self.closed = True

    def _make_room(self, batch: EventBatch) -> list[EventBatch]:
        """Apply the overflow policy; the lock is held. An empty queue admits any batch."""
        refused: list[EventBatch] = []
        if self._overflow == "block":
            self._changed.wait_for(lambda: self.closed or self._fits(batch), self._block_s)
        while self._overflow == "drop_oldest" and not self.closed and not self._fits(batch):
            oldest = self._oldest()
            if oldest is None:
                break
            refused.append(oldest)
        return refused

    def _oldest(self) -> EventBatch | None:
        """Take the oldest batch out of the queue, past the commands; `None` if there is none.

        Each step leaves the queue in order: a signal handler that emits holds this thread's lock.
        """
        commands: list[EventBatch | Command] = []
        oldest: EventBatch | None = None
        while self._items and oldest is None:
            item = self._items.popleft()
            if isinstance(item, Command):
                commands.append(item)
            else:
                oldest = item
        self._items.extendleft(reversed(commands))
        if oldest is not None:
            size_bytes = oldest.size_bytes
            self.size_bytes -= size_bytes
        return oldest

    def _fits(self, batch: EventBatch) -> bool:
        return self.size_bytes == 0 or self.size_bytes + batch.size_bytes <= self._limit_bytes
