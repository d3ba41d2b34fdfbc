"""What the writers of a run leave beside its feed: launches, end marks, locks, checkpoints."""

from __future__ import annotations

from pathlib import Path

from aegir_stream.events import Close
from aegir_stream.launches import LaunchEntry, launches_in
from aegir_stream.layout import STREAMS, UNSYNCED, RunDirectory
from aegir_stream.manifest import look_at_manifest
from aegir_stream.processes import is_alive
from aegir_stream.system import Status

__all__ = ["Traces"]

_TICK_S = 0.1
"""Files are stamped with the last tick, which may lie before a time read from the clock."""


class Traces:
    """Traces of a run's writers, looked at again only where something changed. Never fails.

    Args:
        run: the run directory; it need not be there.

    Attributes:
        newest: the newest launch; one that says nothing if none is known.
        newest_step: step of the newest checkpoint.
        closed_as: status in the closing mark that the live tail of the SAE records ends with.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._manifest_path = run.manifest_path
        self._tail = run.live("sae_features")
        self._names: list[str] | None = None
        self._manifest: Status | None = None
        self._tail_status: Status | None = None
        self._live: list[Path] = []
        self._launches: list[LaunchEntry] = []
        self.newest = LaunchEntry()
        self.newest_step: int | None = None
        self.closed_as: str | None = None

    def look(self, names: list[str]) -> bool:
        """Look again; tell whether anything is different.

        Args:
            names: what is in the run directory now.
        """
        listed = names != self._names
        if listed:
            self._list(names)
        manifest = self._status(self._manifest_path)
        if manifest != self._manifest:
            self._manifest = manifest
            self._launches = launches_in(look_at_manifest(self._run))
            self.newest = self._launches[-1] if self._launches else LaunchEntry()
            listed = True
        tail = self._status(self._tail) if self._tail in self._live else None
        if tail != self._tail_status:
            self._tail_status = tail
            self.closed_as = self._closing_status()
            listed = True
        return listed

    # -- evidence ----------------------------------------------------------------------------------

    def has_ended(self) -> bool:
        """Tell whether the newest launch left an end marker, and no other goes on in its process.

        A journal and a progress feed of one process are two launches.
        """
        if self.newest.ended_at is None:
            return self.closed_as is not None and self._closed_since_start()
        return not (self._goes_on_beside() and self.is_alive())

    def is_alive(self) -> bool | None:
        """Tell whether the process of the newest launch lives; `None` where that is unknown."""
        process = self.newest.process
        return is_alive(process) if process else None

    def is_held(self) -> bool:
        """Tell whether a writer provably holds a file of the run."""
        return any(map(self._run.disk.is_leased, self._live))

    def written_at(self) -> list[float]:
        """When the directory and its live files were last written, seconds since the epoch."""
        found = (self._status(path) for path in [self._run.root, *self._live])
        return [status.modified_ns / 1e9 for status in found if status]

    # -- parts -------------------------------------------------------------------------------------

    def _list(self, names: list[str]) -> None:
        self._names = names
        self.newest_step = self._run.newest_step(names)
        self._live = [path for stream in STREAMS for path in self._run.live_files(stream, names)]

    def _goes_on_beside(self) -> bool:
        """Tell whether another launch of the newest one's process has not ended."""
        newest_attempt = max((entry.attempt or 0 for entry in self._launches), default=0)
        return any(
            entry.ended_at is None
            and entry.process == self.newest.process
            # One attempt ends where the next begins, whether or not it could say so.
            and entry.attempt in {None, newest_attempt}
            for entry in self._launches[:-1]
        )

    def _closing_status(self) -> str | None:
        try:
            ending = self._run.ending_of(self._tail)
        except OSError:
            return None
        if not isinstance(ending, Close) or ending.status == UNSYNCED:
            return None
        return ending.status

    def _closed_since_start(self) -> bool:
        started, tail = self.newest.started_at, self._tail_status
        return started is None or (tail is not None and tail.modified_ns / 1e9 >= started - _TICK_S)

    def _status(self, path: Path) -> Status | None:
        try:
            return self._run.disk.status(path)
        except OSError:
            return None
