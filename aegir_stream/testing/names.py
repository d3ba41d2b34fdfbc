"""The tree of names of a simulated disk, and the journal through which it becomes durable.

The model is that of ext4 and XFS: name changes are journalled, so that a power cut keeps a prefix
of them in their order. Syncing a directory makes the changes in it durable, and with them all that
came before. Content is journalled by neither, so a new name may survive whose file does not.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from aegir_stream.testing.files import Node, StoredDirectory, StoredFile, refuse

__all__ = ["Names"]


class _Change(NamedTuple):
    """One entry of a directory set to a node, or removed."""

    directory: StoredDirectory
    name: str
    node: Node | None

    def apply_to(self, entries: dict[str, Node]) -> None:
        if self.node is None:
            entries.pop(self.name, None)
        else:
            entries[self.name] = self.node


_Transaction: TypeAlias = tuple[_Change, ...]


class Names:
    """All names of a disk, from its root."""

    def __init__(self) -> None:
        self.root = StoredDirectory(1)
        self._pending: list[_Transaction] = []

    @property
    def pending(self) -> int:
        """Number of changes that are not on the medium yet."""
        return len(self._pending)

    # -- lookup ------------------------------------------------------------------------------------

    def find(self, path: Path) -> Node:
        """Return what stands at `path`.

        Raises:
            OSError: nothing does, or something on the way is no directory.
        """
        node: Node = self.root
        for name in path.parts[1:]:
            entries = _directory(node, path).entries
            if name not in entries:
                refuse(errno.ENOENT, path)
            node = entries[name]
        return node

    def parent(self, path: Path) -> StoredDirectory:
        """Return the directory that the name at the end of `path` is in, or would be."""
        return _directory(self.find(path.parent), path)

    def directory(self, path: Path) -> StoredDirectory:
        """Return the directory at `path`."""
        return _directory(self.find(path), path)

    def files(self) -> Iterator[tuple[Path, StoredFile]]:
        """Yield every name of a file, with the file."""
        for path, node in self.walk():
            if isinstance(node, StoredFile):
                yield path, node

    def walk(self, below: Path = Path("/")) -> Iterator[tuple[Path, Node]]:
        """Yield what is under a directory, each directory before what is in it."""
        for name, node in sorted(self.directory(below).entries.items()):
            yield below / name, node
            if isinstance(node, StoredDirectory):
                yield from self.walk(below / name)

    # -- changes -----------------------------------------------------------------------------------

    def add(self, path: Path, node: Node) -> None:
        """Give a node a name that must be free."""
        parent = self.parent(path)
        if path.name in parent.entries or not path.name:
            refuse(errno.EEXIST, path)
        self._change(_Change(parent, path.name, node))

    def link(self, source: Path, target: Path) -> None:
        """Give a file one more name."""
        node = self.find(source)
        if target.name in self.parent(target).entries:
            refuse(errno.EEXIST, target)
        if not isinstance(node, StoredFile):
            refuse(errno.EPERM, source)
        self.add(target, node)

    def rename(self, source: Path, target: Path) -> None:
        """Put one name in the place of another, atomically."""
        old, new = self.parent(source), self.parent(target)
        if source.name not in old.entries:
            refuse(errno.ENOENT, source)
        if source in target.parents:
            refuse(errno.EINVAL, target)
        if target in source.parents:
            refuse(errno.ENOTEMPTY, target)
        node, replaced = old.entries[source.name], new.entries.get(target.name)
        if node is replaced:
            return
        _check_replacing(node, replaced, target)
        self._change(_Change(old, source.name, None), _Change(new, target.name, node))

    def remove(self, path: Path) -> None:
        """Remove the name of a file, or of an empty directory."""
        self.find(path)
        self._change(_Change(self.parent(path), path.name, None))

    # -- durability --------------------------------------------------------------------------------

    def sync(self, directory: StoredDirectory) -> None:
        """Have the medium know all changes up to the last one in a directory."""
        concerned = [
            number
            for number, changes in enumerate(self._pending, start=1)
            if any(change.directory is directory for change in changes)
        ]
        self._commit(max(concerned, default=0))

    def cut(self, kept: int) -> None:
        """Lose all but the first `kept` of the pending changes."""
        touched = [change.directory for changes in self._pending for change in changes]
        self._commit(kept)
        self._pending = []
        for directory in touched:
            directory.entries = dict(directory.durable)
            directory.changes += 1

    def _change(self, *changes: _Change) -> None:
        for change in changes:
            change.apply_to(change.directory.entries)
            change.directory.changes += 1
        self._pending.append(changes)

    def _commit(self, number: int) -> None:
        for changes in self._pending[:number]:
            for change in changes:
                change.apply_to(change.directory.durable)
        del self._pending[:number]


def _directory(node: Node, path: Path) -> StoredDirectory:
    if not isinstance(node, StoredDirectory):
        refuse(errno.ENOTDIR, path)
    return node


def _check_replacing(node: Node, replaced: Node | None, target: Path) -> None:
    if replaced is None:
        return
    if isinstance(node, StoredDirectory):
        if _directory(replaced, target).entries:
            refuse(errno.ENOTEMPTY, target)
    elif isinstance(replaced, StoredDirectory):
        refuse(errno.EISDIR, target)
