"""The protocols that the parts meet in. No behaviour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, runtime_checkable

from msgspec import Struct

from aegir_stream.events import Gap, Note

__all__ = ["Append", "Clock", "EventBatch", "Sealed", "Sink", "View"]

State = TypeVar("State")


class Clock(Protocol):
    """Where time comes from; `aegir_stream.testing.ManualClock` is the one for tests."""

    def time(self) -> float:
        """Return wall-clock seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    def thread_time(self) -> float:
        """Return the CPU seconds that the calling thread has used."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, or sooner by cancellation."""
        ...


@runtime_checkable
class EventBatch(Protocol):
    """Events of one stream that are appended together.

    A batch is made on the training thread and encoded on the recorder's thread, once. It may hold
    columns of any kind; the core asks for bytes only.

    Attributes:
        stream: name of the stream, a key of `aegir_stream.layout.STREAMS`.
        records: number of events.
        size_bytes: memory that the batch holds while queued; what the recorder's bound counts.
        step: optimizer step of all its events, if they have one in common.
        pass_: forward pass of all its events, if they have one in common.
    """

    @property
    def stream(self) -> str:
        """Name of the stream."""
        ...

    @property
    def records(self) -> int:
        """Number of events."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory held while queued, bytes."""
        ...

    @property
    def step(self) -> int | None:
        """Optimizer step, if all events share one."""
        ...

    @property
    def pass_(self) -> str | None:
        """Forward pass, if all events share one."""
        ...

    def encode(self) -> bytes:
        r"""Return the events as JSON lines, each ended by ``\n``; `records` lines."""
        ...

    def release(self) -> None:
        """Give back what the batch holds (buffers of a pool); called exactly once, last."""
        ...


class Append(Struct, frozen=True, kw_only=True):
    """Encoded events of one stream, appended together: what a sink writes.

    Attributes:
        stream: name of the stream.
        data: `records` JSON lines.
        records: number of events.
        step: optimizer step of all of them, if they have one in common.
        pass_: forward pass of all of them, if they have one in common.
    """

    stream: str
    data: bytes
    records: int
    step: int | None = None
    pass_: str | None = None


class Sealed(Struct, frozen=True, kw_only=True):
    """What a sink answers to `Sink.seal`: the segment that became a checkpoint's snapshot."""

    checkpoint: str
    step: int
    segment: int
    records: int
    bytes: int
    crc32: int


class Sink(Protocol):
    """Where events go.

    Order: events arrive in the order in which `write` was awaited. Loss: a `write` that raises may
    have kept a prefix, whole lines only; nothing else is lost silently. Duplicates: none. Thread
    safety: none, one task owns a sink. Blocking: a sink may block the loop it runs on, so give it
    one of its own where that matters (the recorder does).
    """

    async def open(self) -> None:
        """Make the sink ready; awaited once before anything else, again after it has failed.

        Raises:
            OSError: the backend cannot be reached or written.
        """
        ...

    async def write(self, append: Append) -> None:
        """Append encoded events.

        Raises:
            SinkClosedError: after `aclose`.
            OSError: the backend failed; the sink stays usable. `WriteLostError` says how many
                records were lost.
        """
        ...

    async def mark(self, event: Gap | Note, *, stream: str) -> None:
        """Put a control event between the data of a stream.

        Raises:
            SinkClosedError: after `aclose`.
            OSError: the backend failed.
        """
        ...

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:
        """Mark a checkpoint: later events belong to what comes after it.

        Returns `None` from sinks that have no segments.

        Raises:
            SinkClosedError: after `aclose`.
            OSError: the backend failed; what remains to be done is done before the next write.
        """
        ...

    async def flush(self) -> None:
        """Return when everything written so far is as safe as this sink makes it.

        That is visible to readers of the backend, at least. Must be cheap where nothing was written
        since the last call: a recorder calls it at intervals.

        Raises:
            OSError: something is less safe than that; told once, the sink stays usable.
        """
        ...

    async def aclose(self, *, status: str = "finished") -> None:
        """Flush, write the closing mark with `status`, and release everything. Idempotent."""
        ...


class View(Protocol[State]):
    """A pure fold from events to what a person looks at.

    Laws: `fold` uses no clock, disk or network; folding a stream in any chunking gives the same
    state; events of different streams commute, those of one stream keep their order. `fold` may
    reuse the state it was given, which the caller must not use again.

    Attributes:
        streams: names of the streams whose events it wants.
    """

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams whose events the view wants."""
        ...

    def initial(self) -> State:
        """Return the state before any event."""
        ...

    def fold(self, state: State, events: Iterable[Any]) -> State:
        """Return the state after `events`, data events of one stream in their order."""
        ...
