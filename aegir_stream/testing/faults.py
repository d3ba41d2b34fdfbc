"""What goes wrong on a simulated machine, and when."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

__all__ = ["NO_LINKS", "NO_LOCKS", "Call", "Fault", "FaultPlan"]


class Call(msgspec.Struct, frozen=True):
    """A system call that was made.

    Attributes:
        number: its place among all calls of the machine, from 0.
        process: number of the process that made it.
        kind: name of the method of `aegir_stream.system.System`.
        path: file or directory that it is about; the first, where there are two.
    """

    number: int
    process: int
    kind: str
    path: Path


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that goes wrong in certain calls.

    A `sync` that fails leaves its pages clean and unwritten for ever, and a `close` that fails has
    closed, as in Linux.

    Attributes:
        error: number of the error that the calls end with, such as `errno.EIO`; 0 for none.
        kinds: which calls, by the names of the methods of `System`; all if empty.
        under: the file, or the directory with all below it, that they are about; any if absent.
        process: number of the process that makes them; any if absent.
        first: number of the first call of the machine that may be struck.
        times: how many calls are struck, `None` for all until the machine is mended.
        taken: how many bytes at most a write takes.
        done: whether the work is done although an error is told, as when a server's answer is lost.
        meanwhile: what happens just before: a kill, a power cut, another process's deeds.
    """

    error: int = 0
    kinds: frozenset[str] = frozenset()
    under: Path | None = None
    process: int | None = None
    first: int = 0
    times: int | None = 1
    taken: int | None = None
    done: bool = False
    meanwhile: Callable[[], object] | None = None

    def strikes(self, call: Call) -> bool:
        """Tell whether a call is one of those that go wrong."""
        return (
            call.number >= self.first
            and (not self.kinds or call.kind in self.kinds)
            and (self.process is None or call.process == self.process)
            and (self.under is None or call.path.is_relative_to(self.under))
        )

    def raise_for(self, path: Path) -> None:
        """Raise the error, if there is one."""
        if self.error:
            raise OSError(self.error, os.strerror(self.error), str(path))


NO_FAULT = Fault()
NO_LOCKS = Fault(error=errno.ENOLCK, kinds=frozenset({"lock"}), times=None)
"""A file system without locks."""

NO_LINKS = Fault(error=errno.EPERM, kinds=frozenset({"link"}), times=None)
"""A file system without hard links."""


class FaultPlan:
    """The faults to come."""

    def __init__(self) -> None:
        self._left: list[tuple[Fault, int | None]] = []

    def add(self, fault: Fault) -> None:
        """Have a fault happen."""
        self._left.append((fault, fault.times))

    def clear(self) -> None:
        """Have no more faults happen."""
        self._left = []

    def of(self, call: Call) -> Fault:
        """Return the first fault that strikes a call, and count it as having done so."""
        for index, (fault, times) in enumerate(self._left):
            if times != 0 and fault.strikes(call):
                self._left[index] = fault, None if times is None else times - 1
                return fault
        return NO_FAULT
