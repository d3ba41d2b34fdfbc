"""Batches: one of plain events, for streams that are not worth columns; and what is written."""

from __future__ import annotations

import msgspec

from aegir_stream import codec
from aegir_stream.events import DataEvent
from aegir_stream.typing import Append, EventBatch

__all__ = ["Events", "append_of"]


class Events(msgspec.Struct, frozen=True):
    """A batch of plain events (see `aegir_stream.typing.EventBatch`)."""

    stream: str
    events: tuple[DataEvent, ...]
    step: int | None = None
    pass_: str | None = None

    @property
    def records(self) -> int:
        """Number of events."""
        return len(self.events)

    @property
    def size_bytes(self) -> int:
        """A generous estimate of the memory held: 1 KiB an event."""
        return 1024 * len(self.events)

    def encode(self) -> bytes:
        """Return the events as JSON lines."""
        return b"".join(map(codec.encode, self.events))

    def release(self) -> None:
        """Do nothing: plain events hold no pooled buffers."""


def append_of(batch: EventBatch, data: bytes) -> Append:
    """Return what a sink is given of a batch, which is `data` when encoded."""
    return Append(
        stream=batch.stream,
        data=data,
        records=batch.records,
        step=batch.step,
        pass_=batch.pass_,
    )
