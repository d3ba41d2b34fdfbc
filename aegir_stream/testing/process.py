"""One process of a simulated machine: its descriptors, and the system calls it makes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aegir_stream.system import Status, System
from aegir_stream.testing.files import Node, OpenFile, StoredDirectory, StoredFile, refuse

if TYPE_CHECKING:
    from aegir_stream.testing.faults import Fault
    from aegir_stream.testing.machine import Attributes, SimulatedMachine

__all__ = ["Killed", "SimulatedSystem"]

_DEVICE = 1
_KNOWN_FLAGS = os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_APPEND


class Killed(SystemExit):
    """The process was killed and makes no more calls.

    A `SystemExit`, so that it passes through what handles errors and ends a thread without a word.
    """


class SimulatedSystem(System):
    """The system calls of one process. Made by `SimulatedMachine.process` and `fork`.

    Attributes:
        number: of the process.
        alive: whether it was not killed yet.
        believed: sizes and names that it sees instead of the true ones (`SimulatedMachine.look`),
            as a network file system's client does for a while.
    """

    def __init__(
        self, machine: SimulatedMachine, number: int, inherited: Mapping[int, OpenFile]
    ) -> None:
        self.number = number
        self.alive = True
        self.believed: Attributes | None = None
        self._machine = machine
        self._table = dict(inherited)
        for opened in inherited.values():
            opened.references += 1

    # -- life --------------------------------------------------------------------------------------

    @property
    def descriptors(self) -> list[Path]:
        """What it has open, by the names that were opened."""
        return [opened.path for opened in self._table.values()]

    @property
    def nodes(self) -> list[Node]:
        """The inodes that it has open."""
        return [opened.node for opened in self._table.values()]

    def fork(self) -> SimulatedSystem:
        """Return a child, which shares the open files and so the locks."""
        return self._machine.process(inherited=self._table)

    def kill(self) -> None:
        """End it as SIGKILL does: its descriptors are closed, its calls raise `Killed`."""
        with self._machine.lock:
            self.alive = False
            for opened in self._table.values():
                opened.release()
            self._table = {}

    # -- calls about descriptors -------------------------------------------------------------------

    def open(self, path: Path, flags: int) -> int:
        """Open or make a file."""
        with self._calling("open", path) as fault:
            opened = OpenFile(self._node(path, flags), path, flags)
            fault.raise_for(path)  # A file may have been made, but no descriptor.
            fd = next(fd for fd in itertools.count(3) if fd not in self._table)
            opened.references = 1
            self._table[fd] = opened
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor; where an error is told, it is closed all the same."""
        with self._calling("close", self._path(fd), always=True):
            self._opened(fd).release()
            del self._table[fd]

    def write(self, fd: int, data: memoryview | bytes) -> int:
        """Put bytes into the page cache, as many as there is room for."""
        with self._calling("write", self._path(fd)) as fault:
            opened = self._opened(fd)
            if not opened.writes or not isinstance(opened.node, StoredFile):
                refuse(errno.EBADF)
            at = opened.node.size if opened.flags & os.O_APPEND else opened.offset
            room = self._machine.room(opened.node, at, len(data))
            taken = bytes(data[: room if fault.taken is None else min(room, fault.taken)])
            opened.node.write(taken, at)
            opened.offset = at + len(taken)
        return len(taken)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read from the page cache."""
        with self._calling("pread", self._path(fd)):
            opened = self._opened(fd)
            if not opened.reads:
                refuse(errno.EBADF)
            if not isinstance(opened.node, StoredFile):
                refuse(errno.EISDIR)
            end = offset + size
            if self.believed and self.believed.bounds_reads:
                end = min(end, self._size(opened.node))
            return bytes(opened.node.content[offset:end])

    def fstat(self, fd: int) -> Status:
        """Return size, inode and how often it was changed."""
        with self._calling("fstat", self._path(fd)):
            return self._status(self._opened(fd).node)

    def lock(self, fd: int, *, shared: bool = False) -> None:
        """Take the lock for the open file."""
        with self._calling("lock", self._path(fd)):
            opened = self._opened(fd)
            opened.node.lock(opened, exclusive=not shared)

    def sync(self, fd: int) -> None:
        """Make a file's content durable, or the names of a directory."""
        self._sync("sync", fd)

    def sync_data(self, fd: int) -> None:
        """Make a file's content and size durable."""
        self._sync("sync_data", fd)

    # -- calls about names -------------------------------------------------------------------------

    def link(self, source: Path, target: Path) -> None:
        """Give a file one more name."""
        with self._calling("link", source):
            self._machine.names.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Put one name in the place of another."""
        with self._calling("rename", source):
            self._machine.names.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file's name; whoever has it open keeps it."""
        with self._calling("unlink", path):
            if isinstance(self._machine.names.find(path), StoredDirectory):
                refuse(errno.EISDIR, path)
            self._machine.names.remove(path)

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        with self._calling("mkdir", path):
            self._machine.names.add(path, StoredDirectory(self._machine.new_inode()))

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory."""
        with self._calling("names", directory):
            node = self._machine.names.directory(directory)
            stale = self.believed.names.get(node.number) if self.believed else None
            return list(node.entries) if stale is None else stale

    def stat(self, path: Path) -> Status:
        """Return size, inode and how often it was changed."""
        with self._calling("stat", path):
            return self._status(self._machine.names.find(path))

    def exists(self, path: Path) -> bool:
        """Tell whether something stands at `path`."""
        with self._calling("exists", path):
            return self._standing(path) is not None

    def is_directory(self, path: Path) -> bool:
        """Tell whether a directory stands at `path`."""
        with self._calling("is_directory", path):
            return isinstance(self._standing(path), StoredDirectory)

    # -- parts -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _calling(self, kind: str, path: Path, *, always: bool = False) -> Iterator[Fault]:
        """Make a call, with what goes wrong in it; `always` is it done before it fails."""
        with self._machine.lock:
            self._live()
            fault = self._machine.count(self.number, kind, path)
            self._live()
            if not (fault.done or always):
                fault.raise_for(path)
            yield fault
            fault.raise_for(path)

    def _live(self) -> None:
        if not self.alive:
            raise Killed

    def _opened(self, fd: int) -> OpenFile:
        if fd not in self._table:
            refuse(errno.EBADF)
        return self._table[fd]

    def _path(self, fd: int) -> Path:
        opened = self._table.get(fd)
        return opened.path if opened else Path()

    def _node(self, path: Path, flags: int) -> Node:
        """Return what `open` opens, made if it is missing and asked for."""
        if flags & ~_KNOWN_FLAGS:
            raise ValueError(f"The simulated machine knows no flags {flags & ~_KNOWN_FLAGS:#o}")
        node = self._standing(path) if flags & os.O_CREAT else self._machine.names.find(path)
        if node is None:
            node = StoredFile(self._machine.new_inode())
            self._machine.names.add(path, node)
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            refuse(errno.EEXIST, path)
        elif isinstance(node, StoredDirectory) and flags & (os.O_ACCMODE | os.O_CREAT):
            refuse(errno.EISDIR, path)
        return node

    def _standing(self, path: Path) -> Node | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._machine.names.find(path)
        return None

    def _status(self, node: Node) -> Status:
        changes = self.believed.changes if self.believed else {}
        modified = changes.get(node.number, node.changes)
        return Status(self._size(node), (_DEVICE, node.number), modified)

    def _size(self, node: Node) -> int:
        return self.believed.sizes.get(node.number, node.size) if self.believed else node.size

    def _sync(self, kind: str, fd: int) -> None:
        opened = self._table.get(fd)
        try:
            with self._calling(kind, self._path(fd)):
                node = self._opened(fd).node
                if isinstance(node, StoredFile):
                    node.sync()
                elif isinstance(node, StoredDirectory):
                    self._machine.names.sync(node)
        except OSError:
            if opened and isinstance(opened.node, StoredFile):
                opened.node.fail_to_sync()
            raise
