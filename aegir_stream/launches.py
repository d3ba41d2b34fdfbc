"""The launches of a run: what its manifest says of them, and how a writer enters its own.

A launch is one start of whatever writes: an attempt of a trainer, or a run of any other job. Its
entry tells when and where it began, which process it is, and how it ended, if it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from aegir_stream.layout import RunDirectory
from aegir_stream.processes import Process, this_process
from aegir_stream.typing import Clock

__all__ = ["Launch", "LaunchEntry", "launches_in"]


_ENDING = {"ended_at", "status"}


class LaunchEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest says of a launch.

    Attributes:
        started_at: wall-clock seconds since the epoch.
        host: name of its host.
        pid: number of its process.
        pid_started: when that began, see `Process`.
        pid_namespace: where the number counts, see `Process`.
        ended_at: wall-clock seconds since the epoch; `None` while it left no end marker.
        status: how it ended.
        total: how many iterations it means to make, if it said so.
        attempt: number of the attempt, if it is one of a trainer.
    """

    started_at: float | None = None
    host: str | None = None
    pid: int | None = None
    pid_started: str | None = None
    pid_namespace: str | None = None
    ended_at: float | None = None
    status: str | None = None
    total: int | None = None
    attempt: int | None = None

    @property
    def process(self) -> Process | None:
        """The process that was launched, if the entry says which."""
        if self.host is None or self.pid is None:
            return None
        return Process(
            host=self.host, pid=self.pid, started=self.pid_started, namespace=self.pid_namespace
        )


def launches_in(manifest: Mapping[str, Any]) -> list[LaunchEntry]:
    """Return the launches that a manifest lists, oldest first; damaged entries are left out."""
    entries = manifest.get("attempts")
    found = [_entry_of(entry) for entry in entries] if isinstance(entries, list) else []
    return [entry for entry in found if entry]


class Launch:
    """The entry of a writer in the manifest of a run.

    Args:
        run: the run directory.
        clock: where time stamps come from.
        read: returns the manifest, made if there is none; may raise `OSError`.
        facts: what else the entry says.
        total: how many iterations the launch means to make.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        clock: Clock,
        read: Callable[[], Mapping[str, Any]],
        facts: Mapping[str, Any] | None = None,
        total: int | None = None,
    ) -> None:
        process = this_process()
        self._run = run
        self._clock = clock
        self._read = read
        self._told: dict[str, Any] = {
            **(facts or {}),
            "started_at": clock.time(),
            "host": process.host,
            "pid": process.pid,
            "pid_started": process.started,
            "pid_namespace": process.namespace,
        }
        if total is not None:
            self._told["total"] = total
        self._ending: dict[str, Any] = {}

    def enter(self, about: Mapping[str, Any] | None = None) -> None:
        """Put the entry into the manifest, unless it is there.

        Args:
            about: what the manifest says of the run from now on.

        Raises:
            OSError: the manifest cannot be read or written.
        """
        manifest = self._read()
        entries = list(manifest.get("attempts", []))
        places = [place for place, entry in enumerate(entries) if self._is_ours(entry)]
        entry = self._told | self._ending
        if places:
            entries[places[-1]] = entry
        else:
            entries.append(entry)
        entered = {**manifest, **(about or {}), "attempts": entries}
        if entered != manifest:
            self._run.write_manifest(entered)

    def end(self, status: str) -> None:
        """Say in the entry that the launch has ended: its end marker.

        Raises:
            OSError: the manifest cannot be read or written.
        """
        self._ending = {"ended_at": self._clock.time(), "status": status}
        self.enter()

    def _is_ours(self, entry: Mapping[str, Any]) -> bool:
        return {k: v for k, v in entry.items() if k not in _ENDING} == self._told


def _entry_of(fields: object) -> LaunchEntry | None:
    try:
        return msgspec.convert(fields, LaunchEntry)
    except msgspec.ValidationError:
        return None
