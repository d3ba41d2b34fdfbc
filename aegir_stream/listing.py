"""The names in a directory, listed again only where they may have changed."""

from __future__ import annotations

from pathlib import Path

from aegir_stream.disk import Disk
from aegir_stream.system import Status
from aegir_stream.typing import Clock

__all__ = ["Listing"]

_SETTLED_S = 2.0
"""Change times are as coarse as the system's tick, or a second on some file systems. What changes
in the tick in which it was listed cannot be told by the time, so a listing is kept only if the
directory had been left alone for this long."""


class Listing:
    """The names in one directory.

    Args:
        disk: the file system.
        directory: the directory; it need not be there.
        clock: tells how long the directory was left alone.

    Attributes:
        names: sorted; none if there is no directory.
    """

    def __init__(self, disk: Disk, directory: Path, *, clock: Clock) -> None:
        self._disk = disk
        self._directory = directory
        self._clock = clock
        self._status: Status | None = None
        self.names: list[str] = []

    def look(self) -> bool:
        """Look again; tell whether the names are others.

        Raises:
            OSError: the directory is there and cannot be read.
        """
        status = self._disk.status(self._directory)
        if status is not None and status == self._status:
            return False
        before = self.names
        self.names = self._disk.names(self._directory) if status else []
        self._status = status if status and self._is_settled(status) else None
        return self.names != before

    def _is_settled(self, status: Status) -> bool:
        return self._clock.time() - status.modified_ns / 1e9 >= _SETTLED_S
