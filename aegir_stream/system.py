"""The system calls that a log makes, one method each, with nothing around them.

`Disk` is made of these, so whatever stands in for them (`aegir_stream.testing.SimulatedMachine`)
meets the same writer, reader and layout as the machine does.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["Inode", "Status", "System"]

Inode = tuple[int, int]
"""Device and inode number."""


class Status(NamedTuple):
    """What the system tells of a file or directory: also when it was last changed, if known."""

    size: int
    inode: Inode
    modified_ns: int = 0


class System:
    """The operating system. Every method raises `OSError` as its system call does."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file, with mode 0644 if it is made; return its descriptor."""
        return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def write(self, fd: int, data: memoryview | bytes) -> int:
        """Write what is taken of `data`; return the number of bytes."""
        return os.write(fd, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`."""
        return os.pread(fd, size, offset)

    def fstat(self, fd: int) -> Status:
        """Return size, inode and time of change of an open file."""
        return _status(os.fstat(fd))

    def stat(self, path: Path) -> Status:
        """Return size, inode and time of change of what stands at `path`."""
        return _status(path.stat())

    def lock(self, fd: int, *, shared: bool = False) -> None:
        """Take the file's `flock` without waiting.

        Raises:
            BlockingIOError: another open file has it.
        """
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def sync(self, fd: int) -> None:
        """Return when the file's content, or a directory's names, are on the medium."""
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """Return when the file's content and what is needed to read it are on the medium."""
        getattr(os, "fdatasync", os.fsync)(fd)

    def link(self, source: Path, target: Path) -> None:
        """Give a file one more name."""
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Put `source` in the place of `target`, atomically."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Make a directory, whose parent must be there."""
        path.mkdir()

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory, in no order."""
        return [entry.name for entry in directory.iterdir()]

    def exists(self, path: Path) -> bool:
        """Tell whether something stands at `path`."""
        return path.exists()

    def is_directory(self, path: Path) -> bool:
        """Tell whether a directory stands at `path`."""
        return path.is_dir()


def _status(status: os.stat_result) -> Status:
    inode = (status.st_dev, status.st_ino)
    return Status(status.st_size, inode, status.st_mtime_ns)
