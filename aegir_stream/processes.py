"""Which process it is: told apart from every other, also from a later one with the same number."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import msgspec

__all__ = ["Process", "descends_from", "is_alive", "process_of", "started_at", "this_process"]

_PROC = Path("/proc")
_STATE_FIELD = 2
_PARENT_FIELD = 3
_START_FIELD = 21
"""Index of `starttime` in the fields of `/proc/PID/stat` (proc(5) counts from 1)."""

_HIGHEST_PID = 2**31 - 1


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process of some host.

    Attributes:
        host: name of the host.
        pid: process number.
        started: boot of the host and clock tick of the start; `None` where nothing tells.
        namespace: namespace in which `pid` counts (containers have their own); `None` likewise.
    """

    host: str
    pid: int
    started: str | None = None
    namespace: str | None = None


def this_process() -> Process:
    """Return the process that asks."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process:
    """Return the process that has a number here and now; `started` is `None` if none has it."""
    return Process(
        host=os.uname().nodename,
        pid=pid,
        started=_started(_fields(pid)),
        namespace=_namespace(os.getpid()),
    )


def is_alive(process: Process) -> bool | None:
    """Tell whether a process lives; `None` where that cannot be told from here.

    `False` is a proof, as far as the host's name is its own: on this host, in this namespace, no
    process has the number, or one has it that was started at another time.
    """
    here = (os.uname().nodename, _namespace(os.getpid()))
    if (process.host, process.namespace) != here or not 0 < process.pid <= _HIGHEST_PID:
        return None
    fields = _fields(process.pid)
    if not fields:
        return None if _is_there(process.pid) else False
    if fields[_STATE_FIELD] in {"Z", "X"}:
        return False  # It has ended, and only its parent has not asked yet.
    started = _started(fields)
    if started is None or process.started is None:
        return None
    return started == process.started


def descends_from(process: Process) -> bool:
    """Tell whether the process that asks is this one, or was started by it or below it.

    `False` where that cannot be told.
    """
    if (process.host, process.namespace) != (os.uname().nodename, _namespace(os.getpid())):
        return False
    pid = os.getpid()
    while pid != process.pid and (fields := _fields(pid)):
        pid = int(fields[_PARENT_FIELD])
    return pid == process.pid and _started(_fields(pid)) == process.started


def started_at(pid: int) -> float | None:
    """Return when the process that has a number started, in seconds since the epoch.

    Good to a second; `None` where it cannot be told, or there is no such process.
    """
    fields, booted = _fields(pid), _booted_at()
    if not fields or booted is None:
        return None
    return booted + int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")


def _booted_at() -> float | None:
    try:
        stat = (_PROC / "stat").read_text()
    except OSError:
        return None
    found = re.search(r"^btime (\d+)$", stat, re.MULTILINE)
    return float(found[1]) if found else None


def _is_there(pid: int) -> bool:
    """Ask for a process that `/proc` does not show: there may be none, or it may be hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(fields: list[str]) -> str | None:
    boot = _boot()
    return f"{boot}:{fields[_START_FIELD]}" if boot and fields else None


def _fields(pid: int) -> list[str]:
    """Return the fields of `/proc/PID/stat`; none if there is no such file."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return []
    # The second field is the program's name in parentheses, and may hold anything.
    name_ends = stat.rindex(")")
    return [str(pid), stat[:name_ends], *stat[name_ends + 1 :].split()]


@functools.cache
def _boot() -> str | None:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


@functools.cache
def _namespace(pid: int) -> str | None:
    """Return the namespace in which this process counts; `pid` is its own number."""
    try:
        return str((_PROC / str(pid) / "ns/pid").readlink())
    except OSError:
        return None
