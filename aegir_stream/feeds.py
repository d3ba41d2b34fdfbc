"""The files that every attempt appends to: streams that checkpoints do not seal."""

from __future__ import annotations

import contextlib
import itertools

from msgspec.structs import replace

from aegir_stream.disk import AppendHandle
from aegir_stream.durability import Medium
from aegir_stream.layout import UNSYNCED, RunDirectory, lane_name
from aegir_stream.opening import Authorship, begin, closed_on_error, end_torn_line, hold
from aegir_stream.writer import SegmentWriter

__all__ = ["Feed"]


class Feed:
    """One such stream, as one process writes it.

    Opening completes a torn last line. A file that another live process holds is left alone: this
    writer takes the next lane name of its rank. So it does when a sync of its own file has failed;
    the file it leaves is read as a lane like any other.

    Args:
        run: the run directory.
        author: who writes.
        stream: name of the stream.
        attempt: number of the attempt.
        medium: what syncs.

    Raises:
        OSError: the file cannot be opened or written; nothing stays open.
    """

    def __init__(
        self, run: RunDirectory, author: Authorship, *, stream: str, attempt: int, medium: Medium
    ) -> None:
        self._run = run
        self._author = author
        self._stream = stream
        self._attempt = attempt
        self._medium = medium
        self._writer, self._number = self._open(1)

    @property
    def writer(self) -> SegmentWriter:
        """The writer of the file.

        Raises:
            OSError: a sync has failed, and no other file can be opened.
        """
        if self._writer.doubtful:
            self._leave()
        return self._writer

    def sync(self) -> None:
        """Put what was written on the medium, if that was asked for; a failure is told later."""
        self._medium.sync(self._writer, stream=self._stream, path=self._writer.path)

    def close(self, status: str) -> None:
        """Write the closing mark and release the file.

        Raises:
            OSError: the mark could not be written; the file is released all the same.
        """
        try:
            self.writer.end(status)
        finally:
            self.sync()
            self._writer.close(None)

    def _open(self, first: int) -> tuple[SegmentWriter, int]:
        number, lane, handle = self._first_free(first)
        with closed_on_error(handle):
            torn = end_torn_line(handle)
        opening = self._author.opening(stream=self._stream, lane=lane, attempt=self._attempt)
        opening = replace(opening, recovered_torn_bytes=torn)
        writer = begin(self._author, handle=handle, opening=opening)
        # Nothing else says what this attempt rewound.
        self._medium.sync(writer, stream=self._stream, path=writer.path)
        self._medium.renamed(writer.path)
        return writer, number

    def _first_free(self, first: int) -> tuple[int, str, AppendHandle]:
        """Return the first lane of the rank that no process writes, from the `first`-th on."""
        lanes = ((n, lane_name(self._author.rank, writer=n)) for n in itertools.count(first))
        held = ((n, lane, hold(self._run, stream=self._stream, lane=lane)) for n, lane in lanes)
        return next((n, lane, handle) for n, lane, handle in held if handle)

    def _leave(self) -> None:
        """Go on in another file: nobody can tell what of this one is on the medium."""
        left = self._writer
        self._writer, self._number = self._open(self._number + 1)
        with contextlib.suppress(OSError):
            left.close(UNSYNCED)
        self._writer.inherit(left)
