"""Whether what pages are made of has changed, told to the browsers that show them."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import anyio
import watchfiles
from starlette.requests import Request
from starlette.responses import Response

from aegir_adapters.web import sse
from aegir_adapters.web.response import EventStream, Pace
from aegir_adapters.web.stopping import Stopping

__all__ = ["Changes"]

_SUFFIXES = (".css", ".html", ".js")


class Changes:
    """The version of the templates, styles and scripts in some directories.

    A page carries the version it was drawn from, and a browser that hears of another loads it
    again. So nothing is missed while a browser was not listening, and nothing is loaded twice.

    Args:
        directories: where they lie.
        stopping: ends open streams.
    """

    def __init__(self, directories: Sequence[Path], *, stopping: Stopping) -> None:
        self._directories = directories
        self._stopping = stopping
        # A new process may run other Python code: every page is older than it.
        self._process = secrets.token_hex(4)
        self._news = anyio.Event()

    def version(self) -> str:
        """Return the version. Looks at every file, and reads none."""
        files = (path for directory in self._directories for path in directory.iterdir())
        seen = sorted(_look(path) for path in files if path.suffix in _SUFFIXES)
        return f"{self._process}-{zlib.crc32(repr(seen).encode()):08x}"

    async def watch(self, stop: anyio.Event) -> None:
        """Notice changes until told to stop; a cancellation would wait for the watching thread."""
        async for _ in watchfiles.awatch(
            *self._directories, watch_filter=_is_part_of_a_page, stop_event=stop
        ):
            news, self._news = self._news, anyio.Event()
            news.set()

    async def answer(self, _: Request) -> Response:
        """Return the stream of versions: the present one at once, and every one to come."""
        return EventStream(self._versions(), stopping=self._stopping, pace=Pace())

    async def _versions(self) -> AsyncGenerator[bytes, None]:
        while True:
            news = self._news
            yield sse.event(self.version().encode())
            await news.wait()


def _look(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return str(path), 0, 0  # Editors put a new file in the place of the old one.
    return str(path), status.st_mtime_ns, status.st_size


def _is_part_of_a_page(_: watchfiles.Change, path: str) -> bool:
    return path.endswith(_SUFFIXES)
