"""Every file of a run that holds records, and what stood in it at one moment."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import msgspec

from aegir_stream import codec
from aegir_stream.appends import Scan, Span, Tally, last_control_line
from aegir_stream.committed import has_trailers
from aegir_stream.disk import Disk
from aegir_stream.layout import STREAMS, RunDirectory, Stream
from aegir_stream.tail import LINE_LIMIT_BYTES, SHORTER

__all__ = ["Content", "Line", "LogFile", "is_trailed", "log_files", "spans"]

_HEAD_BYTES = 4096
_PIECE_BYTES = 256 << 10


class LogFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that holds records.

    Attributes:
        path: where it lies.
        stream: stream that they belong to.
        growing: whether a writer may still append.
        checkpoint: name of the one that closed it; then a seal must be its last line.
        segment: its number, where the name says it.
    """

    path: Path
    stream: Stream
    growing: bool = False
    checkpoint: str | None = None
    segment: int | None = None

    @property
    def sealed(self) -> bool:
        """Whether a checkpoint closed it."""
        return self.checkpoint is not None


class Line(msgspec.Struct, frozen=True):
    """A line of a file.

    Attributes:
        offset: where it begins.
        length: its bytes, the newline included.
        data: the line without its newline, absent if it is too long to be one.
        finished: whether it has its newline.
    """

    offset: int
    length: int
    data: bytes | None
    finished: bool = True


class Content(msgspec.Struct, frozen=True):
    """What stood in a file when it was looked at; what is appended afterwards is not seen.

    Attributes:
        disk: the file system.
        path: the file.
        inode: (device, inode).
        size: bytes.
    """

    disk: Disk
    path: Path
    inode: tuple[int, int]
    size: int

    @classmethod
    def of(cls, disk: Disk, path: Path) -> Content:
        """Look at a file.

        Raises:
            OSError: as the system calls do (`FileNotFoundError`, ...).
        """
        reading = disk.read(path, offset=0, size=0)
        return cls(disk, path, reading.inode, reading.size)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`.

        Raises:
            FileNotFoundError: the file is gone, or another one has taken its place.
            OSError: it cannot be read.
        """
        size = max(0, min(size, self.size - offset))
        reading = self.disk.read(self.path, offset=offset, size=size)
        if reading.inode != self.inode:
            raise FileNotFoundError(f"another file has taken the place of {self.path}")
        return reading.data

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yield what stands between two offsets, piece by piece.

        Raises:
            OSError: as `read` does, and where the file became shorter.
        """
        while start < end:
            data = self.read(start, min(_PIECE_BYTES, end - start))
            if not data:
                raise OSError(errno.EIO, SHORTER, str(self.path))
            start += len(data)
            yield data

    def lines(self, start: int, end: int) -> Iterator[Line]:
        """Yield the lines between two offsets; the last one may be unfinished.

        Raises:
            OSError: as `pieces` does.
        """
        held: list[bytes] = []
        length = 0
        for piece in self.pieces(start, end):
            *lines, rest = piece.split(b"\n")
            for line in lines:
                length += len(line) + 1
                fits = length <= LINE_LIMIT_BYTES
                yield Line(start, length, b"".join([*held, line]) if fits else None)
                start, length, held = start + length, 0, []
            length += len(rest)
            held = [*held, rest] if length <= LINE_LIMIT_BYTES else []
        if length:
            fits = length <= LINE_LIMIT_BYTES
            yield Line(start, length, b"".join(held) if fits else None, finished=False)


def log_files(run: RunDirectory) -> Iterator[LogFile]:
    """Yield the files of a run that hold records: live tails, closed segments, snapshots.

    A file with several names comes under each. Live tails come first, so that a segment that is
    sealed meanwhile is found among the closed ones.

    Raises:
        OSError: a directory cannot be read.
    """
    for stream in STREAMS.values():
        for lane in run.lanes(stream.name):
            yield LogFile(path=run.live(stream.name, lane), stream=stream, growing=True)
    for stream in (each for each in STREAMS.values() if each.sealed):
        for lane in run.lanes(stream.name):
            for file in run.history(lane):
                yield LogFile(
                    path=file.path,
                    stream=stream,
                    checkpoint=file.label if file.label.startswith("checkpoint-") else None,
                    segment=file.segment,
                )
        for checkpoint in run.checkpoints():
            for path in run.snapshots(checkpoint):
                yield LogFile(path=path, stream=stream, checkpoint=checkpoint.name)


def is_trailed(file: LogFile, content: Content) -> bool:
    """Tell whether a file's appends carry checksums.

    Raises:
        OSError: the file cannot be read.
    """
    head, newline, _ = content.read(0, _HEAD_BYTES).partition(b"\n")
    if codec.is_control(head) or not file.stream.control_lines:
        return file.stream.control_lines
    # A damaged first line: any control line behind it tells.
    return has_trailers(head + newline, file.stream.kind) and (
        last_control_line(content.read, content.size) > 0
    )


def spans(content: Content, *, growing: bool, total: Tally | None = None) -> Iterator[Span]:
    """Yield what a file consists of; of one that grows, not what may still get its trailer.

    Raises:
        OSError: the file cannot be read.
    """
    scan = Scan(total=total)
    while (found := scan.read_on(content.read)) is not None:
        yield from found
    rest = None if growing else scan.rest(content.size)
    if rest:
        yield rest
