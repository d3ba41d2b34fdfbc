"""The reference sink: keeps everything in memory. Read this one first."""

from __future__ import annotations

from aegir_stream.errors import SinkClosedError
from aegir_stream.events import Gap, Note
from aegir_stream.typing import Append, Sealed

__all__ = ["MemorySink"]


class MemorySink:
    """Keeps what it is given, in order, for as long as it lives.

    Attributes:
        appends: everything written.
        marks: control events, each with the name of its stream.
        checkpoints: names of the checkpoints sealed.
        status: how it was closed, `None` while open.
    """

    def __init__(self) -> None:
        self.appends: list[Append] = []
        self.marks: list[tuple[str, Gap | Note]] = []
        self.checkpoints: list[str] = []
        self.status: str | None = None

    def lines(self, stream: str) -> list[bytes]:
        """Return the data lines of a stream, without their newlines."""
        return b"".join(a.data for a in self.appends if a.stream == stream).splitlines()

    async def open(self) -> None:
        """Do nothing: memory is ready."""

    async def write(self, append: Append) -> None:
        """Keep an append."""
        self._require_open()
        self.appends.append(append)

    async def mark(self, event: Gap | Note, *, stream: str) -> None:
        """Keep a control event."""
        self._require_open()
        self.marks.append((stream, event))

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:  # noqa: ARG002 - no segments here
        """Keep the checkpoint's name."""
        self._require_open()
        self.checkpoints.append(checkpoint)
        return None

    async def flush(self) -> None:
        """Do nothing: what was written is visible."""

    async def aclose(self, *, status: str = "finished") -> None:
        """Refuse whatever comes later."""
        self.status = self.status or status

    def _require_open(self) -> None:
        if self.status is not None:
            raise SinkClosedError("The sink is closed", hint="Write before closing it")
