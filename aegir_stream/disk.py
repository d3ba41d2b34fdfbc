"""Every system call on a log, in one place.

Writer, tail and layout touch the disk through this seam only, so that a simulated file system can
stand in for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from aegir_stream.fork import in_forked_child

__all__ = ["AppendHandle", "Disk", "Reading"]

_COPY_BYTES = 1 << 20
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class Reading(NamedTuple):
    """One look at a file: its size and inode at that moment, and the bytes asked for."""

    size: int
    inode: tuple[int, int]
    head: bytes
    data: bytes


class AppendHandle:
    """An open file that only grows. One thread owns it; a forked child does not inherit it."""

    def __init__(self, path: Path, *, exclusive: bool = False) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd: int | None = os.open(path, flags | (os.O_EXCL if exclusive else 0), 0o644)
        self.path = path
        # A lock ends with the last descriptor that holds it, a child's included.
        in_forked_child(self, AppendHandle.close)

    @property
    def fd(self) -> int:
        """Return the descriptor.

        Raises:
            ValueError: the handle is closed.
        """
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        return self._fd

    def lock(self) -> bool:
        """Take the file's exclusive lock without waiting; `False` if another writer holds it.

        A file system without locks counts as locked: the lane names keep writers apart there.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    def write(self, data: memoryview | bytes) -> int:
        """Append what the file system takes of `data`; return the number of bytes."""
        return os.write(self.fd, data)

    def size(self) -> int:
        """Return the size in bytes."""
        return os.fstat(self.fd).st_size

    def inode(self) -> tuple[int, int]:
        """Return (device, inode)."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`."""
        return os.pread(self.fd, size, offset)

    def close(self) -> None:
        """Close the descriptor, and with it the lock. Idempotent."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


class Disk:
    """The file system of the machine."""

    def append(self, path: Path, *, exclusive: bool = False) -> AppendHandle:
        """Open `path` for appending; with `exclusive` it must not exist."""
        return AppendHandle(path, exclusive=exclusive)

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Look at a file once: open, fstat, pread, close.

        No descriptor outlives the call: a reader that holds one inside a checkpoint directory makes
        its removal fail on network file systems. `head` bytes from the start are read as well.

        Raises:
            OSError: as the system calls do (`FileNotFoundError`, ...).
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            first = os.pread(fd, head, 0) if head else b""
            data = os.pread(fd, size, offset) if size and status.st_size > offset else b""
        finally:
            os.close(fd)
        return Reading(status.st_size, (status.st_dev, status.st_ino), first, data)

    def is_held(self, path: Path) -> bool:
        """Tell whether a writer holds the lock of a file; `True` where there are no locks.

        Asking takes a shared lock for a moment, so never ask about a file that may be one's own.

        Raises:
            OSError: as the system calls do (`FileNotFoundError`, ...).
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError) and error.errno not in _NO_LOCKS:
                raise
            return True
        finally:
            os.close(fd)
        return False

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory, sorted; none if it does not exist."""
        try:
            return sorted(entry.name for entry in os.scandir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, path: Path) -> bool:
        """Tell whether something stands at `path`."""
        return path.exists()

    def make_directory(self, path: Path) -> None:
        """Create a directory and its parents; nothing happens if it exists."""
        path.mkdir(parents=True, exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file; nothing happens if it does not exist."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

    def replace(self, source: Path, target: Path) -> None:
        """Rename `source` over `target`, atomically."""
        source.replace(target)

    def share(self, source: Path, target: Path) -> None:
        """Make `target` name the content of `source`, atomically replacing what stood there.

        A hard link where the file system has them, else a copy that is synced before it is renamed.
        """
        temporary = _beside(target)
        try:
            self._link_or_copy(source, temporary)
            self.replace(temporary, target)
        finally:
            # Renaming one link of a file over another link of the same file leaves both in place.
            self.remove(temporary)

    def write(self, path: Path, content: bytes) -> None:
        """Replace a small file atomically: a reader sees the old content or the new."""
        temporary = _beside(path)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self.replace(temporary, path)
        finally:
            self.remove(temporary)

    def create(self, path: Path, content: bytes) -> bool:
        """Create a small file whole, unless it exists; tell whether this call made it."""
        temporary = _beside(path)
        try:
            temporary.write_bytes(content)
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._create_in_place(path, content)
        finally:
            self.remove(temporary)
        return True

    def _create_in_place(self, path: Path, content: bytes) -> bool:
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def _link_or_copy(self, source: Path, target: Path) -> None:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._copy(source, target)

    def _copy(self, source: Path, target: Path) -> None:
        with source.open("rb") as reader, target.open("wb") as writer:
            while piece := reader.read(_COPY_BYTES):
                writer.write(piece)
            writer.flush()
            os.fsync(writer.fileno())


def _beside(path: Path) -> Path:
    """Return a temporary name next to `path` that no other process on any host uses."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
