"""Put what was written on the medium, and keep account of what may not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import msgspec

from aegir_stream.disk import Disk
from aegir_stream.errors import OptionError, UnsyncedError
from aegir_stream.events import Note

__all__ = ["SYNC_FAILED", "Durability", "Medium", "SyncFailure", "Syncable"]

Durability: TypeAlias = Literal["os", "interval", "checkpoint"]
"""What a loss of power may take. A killed process loses nothing that was written, under any.

`os` syncs nothing and leaves it to the kernel. `checkpoint` syncs at every checkpoint and at the
end: what a checkpoint covers is as safe as the checkpoint itself. `interval` syncs whenever the
sink is flushed besides, which the recorder does within `flush_every_s` after a write.
"""

SYNC_FAILED = "sync_failed"
"""Kind of the `Note` that tells of it."""


class SyncFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A file, or the names in a directory, that may not be on the medium.

    Attributes:
        stream: stream whose readers are told.
        path: the file or directory.
        reason: the system's word for it.
        segment: number of the segment that the file was, if it was one.
    """

    stream: str
    path: Path
    reason: str
    segment: int | None = None

    def note(self) -> Note:
        """Return what readers are told."""
        detail: dict[str, Any] = {"file": self.path.name, "reason": self.reason}
        if self.segment is not None:
            detail["segment"] = self.segment
        return Note(kind=SYNC_FAILED, detail=detail)

    def error(self) -> UnsyncedError:
        """Return what the owner of the sink is told."""
        return UnsyncedError(
            f"`{self.path}` could not be synced: {self.reason}",
            hint="Its content can be read, but may not survive a loss of power; check the disk",
        )


class Syncable(Protocol):
    """A file that can be synced."""

    def sync(self) -> None:
        """Return when its content is on the medium, or raise `OSError`."""
        ...


class Medium:
    """The medium below a run directory, as far as a durability asks for it.

    Nothing here raises or retries: what fails is kept in `failures` until someone tells it.

    Args:
        disk: the file system.
        durability: what is synced at all; nothing under `os`.

    Attributes:
        durability: likewise.
        failures: what may not be on the medium and was not told yet.

    Raises:
        OptionError: there is no such durability.
    """

    def __init__(self, disk: Disk, *, durability: Durability = "os") -> None:
        if durability not in get_args(Durability):
            raise OptionError(
                f"Expected `os`, `interval` or `checkpoint` as durability, got `{durability}`",
                hint="See docs/explanation/durability.md for what each may lose",
            )
        self._disk = disk
        self._changed: dict[Path, None] = {}
        self.durability: Durability = durability
        self.failures: list[SyncFailure] = []

    @property
    def syncs(self) -> bool:
        """Whether anything is ever synced."""
        return self.durability != "os"

    def sync(self, file: Syncable, *, stream: str, path: Path, segment: int | None = None) -> None:
        """Put what was written to a file on the medium.

        Args:
            file: the open file.
            stream: stream whose readers are told if that fails.
            path: the file's name, for them.
            segment: number of the segment that it is, if it is one.
        """
        if not self.syncs:
            return
        try:
            file.sync()
        except OSError as error:
            self._fail(stream, path, error, segment)

    def renamed(self, *paths: Path) -> None:
        """Remember that names were made or changed."""
        if self.syncs:
            self._changed.update(dict.fromkeys(path.parent for path in paths))

    def sync_names(self) -> None:
        """Put the names that were changed on the medium."""
        changed, self._changed = self._changed, {}
        for directory in changed:
            try:
                self._disk.sync_directory(directory)
            except FileNotFoundError:
                continue  # A checkpoint that was deleted meanwhile, with all its names.
            except OSError as error:
                self._fail("sae_features", directory, error)

    def _fail(self, stream: str, path: Path, error: OSError, segment: int | None = None) -> None:
        reason = error.strerror or str(error)
        failure = SyncFailure(stream=stream, path=path, reason=reason, segment=segment)
        self.failures.append(failure)
