"""A machine with processes and one disk, all in memory, that fails when and how a test says."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from aegir_stream.testing.faults import Call, Fault, FaultPlan
from aegir_stream.testing.files import OpenFile, StoredDirectory, StoredFile, refuse
from aegir_stream.testing.names import Names
from aegir_stream.testing.process import SimulatedSystem

__all__ = ["Attributes", "SimulatedMachine"]

Replacement: TypeAlias = Literal["same", "new", "reused"]
"""Whether what is put at a path is the same inode, a new one, or a new one of the same number."""


class Attributes(msgspec.Struct, frozen=True):
    """Sizes and names at one moment, by inode number.

    Attributes:
        sizes: size of every file.
        names: names in every directory.
        bounds_reads: whether reading ends at those sizes too, as where pages are cached.
        changes: how often each was changed.
    """

    sizes: dict[int, int]
    names: dict[int, list[str]]
    bounds_reads: bool = False
    changes: dict[int, int] = {}


class SimulatedMachine:
    """Processes that share a disk. The disk holds nothing at first, but its root `/`.

    What is written is visible to every process at once, and durable as far as it was synced. Give
    `Disk(machine.process())` to a run directory, and reader and writer work as on a real machine;
    then have something go wrong (`fail`, `capacity_bytes`, `put`, `power_cut`, ...).

    Thread safety: calls of all processes and methods of the machine may come from any thread.

    Args:
        capacity_bytes: size of the disk; a write beyond it takes what fits, then fails.
        file_limit_bytes: bound on the size of a file, likewise.

    Attributes:
        calls: every system call so far, in order.
        names: the tree of names.
        lock: held while a call is made.
    """

    def __init__(
        self, *, capacity_bytes: int | None = None, file_limit_bytes: int | None = None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.file_limit_bytes = file_limit_bytes
        self.calls: list[Call] = []
        self.names = Names()
        self.lock = threading.RLock()
        self._faults = FaultPlan()
        self._processes: list[SimulatedSystem] = []
        self._inodes = 1

    # -- processes ---------------------------------------------------------------------------------

    def process(self, *, inherited: Mapping[int, OpenFile] | None = None) -> SimulatedSystem:
        """Start a process; `fork` has it inherit open files by their descriptors."""
        with self.lock:
            process = SimulatedSystem(self, len(self._processes), inherited or {})
            self._processes.append(process)
        return process

    @property
    def descriptors(self) -> list[Path]:
        """What all processes have open."""
        return [path for process in self._processes for path in process.descriptors]

    # -- what goes wrong ---------------------------------------------------------------------------

    def fail(self, fault: Fault) -> None:
        """Have a fault happen. Of several that fit a call the first one given happens."""
        with self.lock:
            self._faults.add(fault)

    def mend(self) -> None:
        """Have no more faults happen, and give the disk room without end."""
        with self.lock:
            self._faults.clear()
            self.capacity_bytes = self.file_limit_bytes = None

    def power_cut(
        self,
        choose: Callable[[int, int], int] = min,
        *,
        names: Callable[[int, int], int] | None = None,
        keeps_sizes: bool = False,
    ) -> None:
        """End all processes and lose what is not on the medium.

        Of every file a prefix is left, not shorter than what was synced; of the name changes, over
        all directories, a prefix in their order that holds at least what was synced.

        Args:
            choose: picks how much is left, given the least and the most that may be; `min` leaves
                no more than was synced, `max` everything. What it returns is kept between them.
            names: likewise for the name changes; `choose` if absent.
            keeps_sizes: whether NULs stand where content was lost, as where only the file's size
                had reached the medium.
        """
        with self.lock:
            for process in self._processes:
                process.kill()
            self.names.cut(_chosen(names or choose, 0, self.names.pending))
            # In the order in which they were made: names may have been drawn at random.
            files = {file.number: file for _, file in self.names.files()}
            for _, file in sorted(files.items()):
                kept = _chosen(choose, file.synced, file.size)
                file.cut(kept, keeps_size=keeps_sizes)

    # -- what others do with the files -------------------------------------------------------------

    def files(self) -> dict[Path, bytes]:
        """Return the content of every file, by its names."""
        with self.lock:
            return {path: bytes(file.content) for path, file in self.names.files()}

    def put(self, path: Path, content: bytes, *, inode: Replacement = "same") -> None:
        """Change what a file holds, or make one: truncate, damage, replace it.

        What is put there is on the medium.
        """
        with self.lock:
            there = self.names.parent(path).entries.get(path.name)
            if isinstance(there, StoredFile) and inode == "same":
                there.put(content)
                return
            if there:
                self.names.remove(path)
            number = there.number if there and inode == "reused" else self.new_inode()
            self.names.add(path, StoredFile(number, content))
            self.names.sync(self.names.parent(path))

    def make_directory(self, path: Path) -> None:
        """Make a directory and its parents, on the medium."""
        with self.lock:
            for one in [*reversed(path.parents[:-1]), path]:
                if one.name not in self.names.parent(one).entries:
                    self.names.add(one, StoredDirectory(self.new_inode()))
                    self.names.sync(self.names.parent(one))

    def remove(self, path: Path) -> None:
        """Remove a file, or a directory and all below it."""
        with self.lock:
            if isinstance(self.names.find(path), StoredDirectory):
                for below, _ in reversed([*self.names.walk(path)]):
                    self.names.remove(below)
            self.names.remove(path)

    def look(self, *, bounds_reads: bool = False) -> Attributes:
        """Return the sizes and names of this moment, for a process to believe in later."""
        with self.lock:
            nodes = [self.names.root, *(node for _, node in self.names.walk())]
            sizes = {node.number: node.size for node in nodes if isinstance(node, StoredFile)}
            names = {
                node.number: list(node.entries)
                for node in nodes
                if isinstance(node, StoredDirectory)
            }
            changes = {node.number: node.changes for node in nodes}
        return Attributes(sizes, names, bounds_reads, changes)

    # -- for its processes -------------------------------------------------------------------------

    def count(self, process: int, kind: str, path: Path) -> Fault:
        """Count a call; return what goes wrong in it, after what happens just before it."""
        call = Call(len(self.calls), process, kind, path)
        self.calls.append(call)
        fault = self._faults.of(call)
        if fault.meanwhile:
            fault.meanwhile()
        return fault

    def new_inode(self) -> int:
        """Return a number that no inode has had."""
        self._inodes += 1
        return self._inodes

    def room(self, file: StoredFile, offset: int, wanted: int) -> int:
        """Return how many of the bytes wanted may be written to a file at an offset."""
        room = wanted
        if self.file_limit_bytes is not None:
            room = min(room, self.file_limit_bytes - offset)
            if room <= 0 < wanted:
                refuse(errno.EFBIG)
        if self.capacity_bytes is not None:
            room = min(room, self.capacity_bytes - self.used_bytes() + file.size - offset)
            if room <= 0 < wanted:
                refuse(errno.ENOSPC)
        return room

    def used_bytes(self) -> int:
        """Return what named and open files occupy."""
        named = {file for _, file in self.names.files()}
        opened = {node for process in self._processes for node in process.nodes}
        return sum(node.size for node in named | opened)


def _chosen(choose: Callable[[int, int], int], least: int, most: int) -> int:
    return max(least, min(most, choose(least, most)))
