"""Events that are made on the recorder's thread, so that training does not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from aegir_stream import codec
from aegir_stream.events import DataEvent

__all__ = ["Deferred"]


class Deferred(Struct, frozen=True, kw_only=True, eq=False):
    """A batch of events that are still to be made (see `aegir_stream.typing.EventBatch`).

    Attributes:
        stream: name of the stream.
        make: returns the events; called once, on the recorder's thread.
        records: how many events it will return.
        record_bytes: memory held per event while queued, an estimate.
        step: optimizer step of the events.
        pass_: forward pass of the events.
    """

    stream: str
    make: Callable[[], Iterable[DataEvent]]
    records: int
    record_bytes: int = 1024
    step: int | None = None
    pass_: str | None = None

    @property
    def size_bytes(self) -> int:
        """Memory held while queued."""
        return self.records * self.record_bytes

    def encode(self) -> bytes:
        """Make the events and return them as JSON lines."""
        return b"".join(map(codec.encode, self.make()))

    def release(self) -> None:
        """Do nothing: what the events are made of belongs to the garbage collector."""
