"""Inodes of a simulated disk: what is in the page cache, what on the medium, who holds a lock."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

__all__ = ["Node", "OpenFile", "StoredDirectory", "StoredFile", "refuse"]


def refuse(number: int, path: Path | None = None) -> NoReturn:
    """Raise the `OSError` that a system call ends with."""
    raise OSError(number, os.strerror(number), *([] if path is None else [str(path)]))


class Node:
    """An inode: something that names and descriptors lead to.

    Attributes:
        number: inode number.
        holders: open files that hold its `flock`, and whether exclusively.
        changes: how often it was changed; stands for the time of its last change.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.changes = 0
        self.holders: dict[OpenFile, bool] = {}

    @property
    def size(self) -> int:
        """Size in bytes."""
        return 0

    def lock(self, holder: OpenFile, *, exclusive: bool) -> None:
        """Take or convert the lock. As in Linux, a conversion that fails loses what was held."""
        if self.holders.get(holder) is exclusive:
            return
        self.holders.pop(holder, None)
        if any(exclusive or other for other in self.holders.values()):
            refuse(errno.EAGAIN)
        self.holders[holder] = exclusive


class StoredFile(Node):
    """A file. The page cache holds all of it, the medium what was synced.

    Attributes:
        content: what every process sees.
        synced: how much of it, from its start, was reported to be on the medium.
        lost: ranges that a failed sync has dropped: no longer dirty, and never written.
    """

    def __init__(self, number: int, content: bytes = b"") -> None:
        super().__init__(number)
        self.content = bytearray(content)
        self.synced = len(content)
        self.lost: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        """Size in bytes, as every process sees it."""
        return len(self.content)

    def write(self, data: bytes, offset: int) -> None:
        """Put bytes into the page cache; what they overwrite is no longer synced."""
        self.content[offset : offset + len(data)] = data
        self.changes += 1
        self.synced = min(self.synced, offset)

    def put(self, content: bytes) -> None:
        """Hold something else, on the medium."""
        self.content, self.lost = bytearray(content), []
        self.changes += 1
        self.sync()

    def sync(self) -> None:
        """Write the dirty pages."""
        self.synced = self.size

    def fail_to_sync(self) -> None:
        """Take the dirty pages for clean although they were not written, as Linux does."""
        self.lost.append((self.synced, self.size))
        self.synced = self.size

    def cut(self, kept: int, *, keeps_size: bool = False) -> None:
        """Lose what was not on the medium; what is left is there.

        Args:
            kept: bytes that survive, no fewer than were synced.
            keeps_size: whether NULs stand for the rest, as where only the size had been written.
        """
        content = self.content[:kept] + bytes(self.size - kept if keeps_size else 0)
        # A range that was never written has no block on the medium: it reads as NULs.
        for start, end in self.lost:
            end_of_it = min(end, len(content))
            content[start:end_of_it] = bytes(max(0, end_of_it - start))
        self.put(bytes(content))


class StoredDirectory(Node):
    """A directory.

    Attributes:
        entries: names as every process sees them.
        durable: names as they are on the medium.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.entries: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}


class OpenFile:
    """What `open` makes and descriptors refer to: shared by a process and its forked children.

    Attributes:
        node: the file or directory.
        path: the name that it was opened under.
        flags: as given to `open`.
        offset: where the next write goes, unless it appends.
        references: descriptors that refer to it, in all processes.
    """

    def __init__(self, node: Node, path: Path, flags: int) -> None:
        self.node = node
        self.path = path
        self.flags = flags
        self.offset = 0
        self.references = 0

    @property
    def reads(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    def release(self) -> None:
        """Drop a reference; the last one takes the lock with it."""
        self.references -= 1
        if not self.references:
            self.node.holders.pop(self, None)
