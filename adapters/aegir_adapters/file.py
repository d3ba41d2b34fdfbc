"""A sink that writes one file, without blocking its event loop."""

from __future__ import annotations

from pathlib import Path

import aiofiles
import aiofiles.os
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from aegir_stream.errors import SinkClosedError
from aegir_stream.events import Gap, Note
from aegir_stream.typing import Append, Sealed

__all__ = ["FileSink"]


class FileSink:
    """Appends the data lines of every stream it is given to one file.

    A consumer's copy, not a run directory: no control lines, no lock, no seals. What is written is
    visible after `flush`.

    Args:
        path: the file; created with its directory when missing, appended to otherwise.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: AsyncBufferedIOBase | None = None

    async def open(self) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be opened.
        """
        if self._file is None:
            await aiofiles.os.makedirs(self._path.parent, exist_ok=True)
            self._file = await aiofiles.open(self._path, "ab")

    async def write(self, append: Append) -> None:
        """Append lines."""
        await self._opened().write(append.data)

    async def mark(self, event: Gap | Note, *, stream: str) -> None:  # noqa: ARG002 - data only
        """Leave control events out."""
        self._opened()

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:  # noqa: ARG002 - one file
        """Make what came before the checkpoint visible."""
        await self.flush()
        return None

    async def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        await self._opened().flush()

    async def aclose(self, *, status: str = "finished") -> None:  # noqa: ARG002 - no closing mark
        """Flush and close the file. Idempotent."""
        if self._file is not None:
            file, self._file = self._file, None
            await file.close()

    def _opened(self) -> AsyncBufferedIOBase:
        if self._file is None:
            raise SinkClosedError(
                f"`{self._path}` is not open", hint="Await open() first, and write before aclose()"
            )
        return self._file
