"""A batch of plain events, for streams that are not worth columns."""

from __future__ import annotations

import msgspec

from aegir_stream import codec
from aegir_stream.events import DataEvent

__all__ = ["Events"]


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
