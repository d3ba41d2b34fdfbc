"""The protocols that the parts meet in. No behaviour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, runtime_checkable

from msgspec import Struct

__all__ = ["Clock", "EventBatch", "Sealed", "Sink", "View"]

State = TypeVar("State")


class Clock(Protocol):
    """Where time comes from; `aegir_stream.testing.ManualClock` is the one for tests."""

    def time(self) -> float:
        """Return wall-clock seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
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
    def stream(self) -> str: ...
    @property
    def records(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def step(self) -> int | None: ...
    @property
    def pass_(self) -> str | None: ...

    def encode(self) -> bytes:
        r"""Return the events as JSON lines, each ended by ``\n``; `records` lines."""
        ...

    def release(self) -> None:
        """Give back what the batch holds (buffers of a pool); called exactly once, last."""
        ...


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

    Order: batches appear in the order in which `write` was awaited. Loss: a `write` that raises may
    have kept a prefix of its batch, whole lines only; nothing else is lost silently. Duplicates:
    none. Thread safety: none, one task owns a sink. Cancellation: `write` and `seal` are all or
    nothing with regard to it where the sink's backend allows, else at whole lines.
    """

    async def write(self, batch: EventBatch) -> None:
        """Append a batch.

        Raises:
            SinkClosedError: after `aclose`.
            OSError: the backend failed; the sink stays usable.
        """
        ...

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:
        """Mark a checkpoint: later batches belong to what comes after it.

        Returns `None` from sinks that have no segments.
        """
        ...

    async def flush(self) -> None:
        """Return when everything written so far is visible to readers of the backend."""
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
    def streams(self) -> tuple[str, ...]: ...

    def initial(self) -> State:
        """Return the state before any event."""
        ...

    def fold(self, state: State, events: Iterable[Any]) -> State:
        """Return the state after `events`, data events of one stream in their order."""
        ...
