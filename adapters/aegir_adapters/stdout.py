"""A sink that prints: one JSON object a line, for `jq` and its kind."""

from __future__ import annotations

import sys
from typing import BinaryIO

import anyio.to_thread

from aegir_stream.errors import SinkClosedError
from aegir_stream.events import Gap, Note
from aegir_stream.typing import Append, Sealed

__all__ = ["StdoutSink"]


class StdoutSink:
    """Writes data lines to standard output, in a worker thread, since a pipe may be full.

    Args:
        output: another binary stream to write to.
    """

    def __init__(self, output: BinaryIO | None = None) -> None:
        self._output = output or sys.stdout.buffer
        self._closed = False

    async def open(self) -> None:
        """Do nothing: standard output is open."""

    async def write(self, append: Append) -> None:
        """Print lines.

        Raises:
            BrokenPipeError: the reader of the pipe is gone.
        """
        self._require_open()
        await anyio.to_thread.run_sync(self._output.write, append.data)

    async def mark(self, event: Gap | Note, *, stream: str) -> None:  # noqa: ARG002 - data only
        """Leave control events out."""
        self._require_open()

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:  # noqa: ARG002 - no segments
        """Make what came before the checkpoint visible."""
        await self.flush()
        return None

    async def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        self._require_open()
        await anyio.to_thread.run_sync(self._output.flush)

    async def aclose(self, *, status: str = "finished") -> None:  # noqa: ARG002 - no closing mark
        """Flush, and leave standard output open for others. Idempotent."""
        if not self._closed:
            await self.flush()
            self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise SinkClosedError("The sink is closed", hint="Write before aclose()")
