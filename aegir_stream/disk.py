"""What a log does with files: append, look, share, replace. Made of the calls of a `System`.

Writer, tail and layout touch the disk through this seam only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from aegir_stream.fork import in_forked_child
from aegir_stream.system import Inode, Status, System

__all__ = ["AppendHandle", "Disk", "Reading"]

_PIECE_BYTES = 1 << 20
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Reading(NamedTuple):
    """One look at a file: its size and inode at that moment, and the bytes asked for."""

    size: int
    inode: Inode
    head: bytes
    data: bytes


class AppendHandle:
    """An open file that only grows. One thread owns it; a forked child does not inherit it."""

    def __init__(self, system: System, path: Path, *, exclusive: bool = False) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | (os.O_EXCL if exclusive else 0)
        self._system = system
        self._fd: int | None = system.open(path, flags)
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
        while not self._locked(shared=False):
            # What is in the way may be a mere look (`Disk.is_held`), which is over at once.
            if not self._locked(shared=True):
                return False
        return True

    def _locked(self, *, shared: bool) -> bool:
        try:
            self._system.lock(self.fd, shared=shared)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    def write(self, data: memoryview | bytes) -> int:
        """Append what the file system takes of `data`; return the number of bytes."""
        return self._system.write(self.fd, data)

    def sync(self) -> None:
        """Return when everything appended so far is on the medium.

        Raises:
            OSError: it may not be, and no later call can tell: the system forgets what it failed to
                write. Go on in another file.
        """
        self._system.sync_data(self.fd)

    def size(self) -> int:
        """Return the size in bytes."""
        return self._system.fstat(self.fd).size

    def inode(self) -> Inode:
        """Return (device, inode)."""
        return self._system.fstat(self.fd).inode

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`."""
        return self._system.pread(self.fd, size, offset)

    def close(self) -> None:
        """Close the descriptor, and with it the lock. Idempotent."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._system.close(fd)


class Disk:
    """The file system that a log lies on.

    Args:
        system: whose calls it is made of; the machine's own if absent.
    """

    def __init__(self, system: System | None = None) -> None:
        self._system = system or System()

    # -- files that grow ---------------------------------------------------------------------------

    def append(self, path: Path, *, exclusive: bool = False) -> AppendHandle:
        """Open `path` for appending; with `exclusive` it must not exist."""
        return AppendHandle(self._system, path, exclusive=exclusive)

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Look at a file once: open, fstat, pread, close.

        No descriptor outlives the call: a reader that holds one inside a checkpoint directory makes
        its removal fail on network file systems. `head` bytes from the start are read as well.

        Raises:
            OSError: as the system calls do (`FileNotFoundError`, ...).
        """
        with self._opened(path, os.O_RDONLY) as fd:
            status = self._system.fstat(fd)
            first = self._system.pread(fd, head, 0) if head else b""
            there = size and status.size > offset
            data = self._system.pread(fd, size, offset) if there else b""
        return Reading(status.size, status.inode, first, data)

    def lines(self, path: Path) -> Iterator[bytes]:
        """Yield the complete lines of a file, without their newlines, in bounded memory.

        Raises:
            OSError: as the system calls do.
        """
        offset, rest = 0, b""
        while data := self.read(path, offset=offset, size=_PIECE_BYTES).data:
            offset += len(data)
            *whole, rest = (rest + data).split(b"\n")
            yield from whole

    def is_held(self, path: Path) -> bool:
        """Tell whether a writer holds the lock of a file; `True` where there are no locks.

        Asking takes a shared lock for a moment, so never ask about a file that may be one's own.
        Where a writer goes on in another file meanwhile, that one is asked about.

        Raises:
            OSError: as the system calls do (`FileNotFoundError`, ...).
        """
        while True:
            with self._opened(path, os.O_RDONLY) as fd:
                if not self._is_free(fd):
                    return True
                looked_at = self._system.fstat(fd).inode
            if self.read(path, offset=0, size=0).inode == looked_at:
                return False

    def is_leased(self, path: Path) -> bool:
        """Tell whether a writer provably holds the lock of a file; `False` if there is no file.

        Unlike `is_held` this takes a file system without locks for no proof.
        """
        try:
            with self._opened(path, os.O_RDONLY) as fd:
                self._system.lock(fd, shared=True)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _is_free(self, fd: int) -> bool:
        try:
            self._system.lock(fd, shared=True)
        except OSError as error:
            if not isinstance(error, BlockingIOError) and error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    def status(self, path: Path) -> Status | None:
        """Return size, inode and time of change of a file or directory; `None` if there is none.

        Raises:
            OSError: as the system call does, but for a missing file.
        """
        try:
            return self._system.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    # -- directories -------------------------------------------------------------------------------

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory, sorted; none if it does not exist."""
        try:
            return sorted(self._system.names(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, path: Path) -> bool:
        """Tell whether something stands at `path`."""
        return self._system.exists(path)

    def is_directory(self, path: Path) -> bool:
        """Tell whether a directory stands at `path`."""
        return self._system.is_directory(path)

    def make_directory(self, path: Path) -> None:
        """Create a directory and its parents; nothing happens if it exists."""
        try:
            self._system.mkdir(path)
        except FileNotFoundError:
            if path.parent == path:
                raise
            self.make_directory(path.parent)
            self.make_directory(path)
        except FileExistsError:
            if not self._system.is_directory(path):
                raise

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are on the medium, where that can be asked for.

        Raises:
            OSError: they may not be.
        """
        with self._opened(path, os.O_RDONLY) as fd:
            try:
                self._system.sync(fd)
            except OSError as error:
                if error.errno not in _NO_DIRECTORY_SYNC:
                    raise

    def remove(self, path: Path) -> None:
        """Remove a file; nothing happens if it does not exist."""
        with contextlib.suppress(FileNotFoundError):
            self._system.unlink(path)

    def replace(self, source: Path, target: Path) -> None:
        """Rename `source` over `target`, atomically."""
        self._system.rename(source, target)

    def share(self, source: Path, target: Path) -> None:
        """Make `target` name the content of `source`, atomically replacing what stood there.

        A hard link where the file system has them, else a copy that is synced before it is renamed.
        """
        with self._beside(target) as temporary:
            self._link_or_copy(source, temporary)
            self.replace(temporary, target)

    # -- small files -------------------------------------------------------------------------------

    def load(self, path: Path) -> bytes:
        """Return the content of a small file.

        Raises:
            OSError: as the system calls do (`FileNotFoundError`, ...).
        """
        return b"".join(self._pieces(path))

    def write(self, path: Path, content: bytes) -> None:
        """Replace a small file atomically: a reader sees the old content or the new."""
        with self._beside(path) as temporary:
            self._save(temporary, [content])
            self.replace(temporary, path)

    def create(self, path: Path, content: bytes) -> bool:
        """Create a small file whole, unless it exists; tell whether this call made it."""
        with self._beside(path) as temporary:
            self._save(temporary, [content])
            try:
                self._system.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._create_in_place(path, content)
        return True

    # -- parts -------------------------------------------------------------------------------------

    def _create_in_place(self, path: Path, content: bytes) -> bool:
        try:
            self._save(path, [content])
        except FileExistsError:
            return False
        return True

    def _link_or_copy(self, source: Path, target: Path) -> None:
        try:
            self._system.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._save(target, self._pieces(source))

    def _save(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Make a file that must not exist, with its content on the medium."""
        with self._opened(path, _NEW) as fd:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[self._system.write(fd, view) :]
            self._system.sync(fd)

    def _pieces(self, path: Path) -> Iterator[bytes]:
        offset = 0
        while data := self.read(path, offset=offset, size=_PIECE_BYTES).data:
            yield data
            offset += len(data)

    @contextlib.contextmanager
    def _opened(self, path: Path, flags: int) -> Iterator[int]:
        fd = self._system.open(path, flags)
        try:
            yield fd
        finally:
            self._system.close(fd)

    @contextlib.contextmanager
    def _beside(self, path: Path) -> Iterator[Path]:
        """Offer a temporary name next to `path`; what is left there afterwards is removed."""
        temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
        try:
            yield temporary
        finally:
            # Renaming one link of a file over another link of the same file leaves both in place.
            self.remove(temporary)
