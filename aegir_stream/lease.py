"""Who trains into a run directory: one at a time, held by a lock that ends with its holder.

The lease is the lock of `aegir_lease.jsonl` in the directory; every holder adds a line that says
who it is, so that the next one can be told. The locks of the log's writers count as well: a
training script that only has the callback holds the directory, too.
"""

from __future__ import annotations

import datetime as dt
import shlex
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from aegir_stream.clock import SystemClock
from aegir_stream.config import OUTPUT_DIR_VARIABLE
from aegir_stream.disk import AppendHandle
from aegir_stream.errors import AegirError, UnreadableRunError
from aegir_stream.layout import RunDirectory
from aegir_stream.opening import closed_on_error, end_torn_line, hold_file
from aegir_stream.processes import Process, descends_from, this_process
from aegir_stream.traces import Traces
from aegir_stream.typing import Clock

__all__ = ["Holder", "Holding", "Lease", "LeaseHeldError", "lease_of"]

_LONGEST_COMMAND = 200


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds something others may want.

    Attributes:
        process: which process it is.
        since: wall-clock seconds since the epoch when it took hold.
        directory: the working directory that it was started in, if known.
        command: its command line, if known; a long one is cut.
    """

    process: Process
    since: float | None = None
    directory: str | None = None
    command: str | None = None

    def __str__(self) -> str:
        """Say who it is: process, host, command, time of start, directory."""
        command = f" (`{self.command}`)" if self.command else ""
        since = f", started {_utc(self.since)}" if self.since is not None else ""
        place = f" in {self.directory}" if self.directory else ""
        return f"process {self.process.pid} on {self.process.host}{command}{since}{place}"


class LeaseHeldError(AegirError, BlockingIOError):
    """Another process trains into the directory.

    Attributes:
        holder: which one, if it is known.
    """

    def __init__(self, message: str, *, holder: Holder | None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.holder = holder


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What can be told of a directory's lease.

    Attributes:
        held: whether somebody provably holds it now.
        holder: who that is, or who was the last.
    """

    held: bool
    holder: Holder | None = None


class Lease:
    """The right to train into a directory, held until `release` or the end of the process.

    A process that the holder started is granted it as well, and then releases nothing: `aegir
    guard` takes it for the command that it runs. On a file system without locks everybody gets it.

    Thread safety: one thread owns it. In a forked child it is released without effect on ours.
    """

    def __init__(self, handle: AppendHandle | None) -> None:
        self._handle = handle

    @classmethod
    def take(
        cls,
        run: RunDirectory,
        *,
        variable: str = OUTPUT_DIR_VARIABLE,
        clock: Clock | None = None,
    ) -> Lease:
        """Take the lease of a run directory, which is made if it is missing.

        Args:
            run: the run directory.
            variable: the environment variable that names another one, for the error.
            clock: tells since when it is held; the system's if absent.

        Raises:
            LeaseHeldError: another process holds it, or writes a log there; names it.
            UnreadableRunError: the directory cannot be made or written.
            OSError: another disk error.
        """
        try:
            run.disk.make_directory(run.root)
            handle = hold_file(run.disk, run.lease_path)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UnreadableRunError(
                f"The output directory `{run.root}` cannot be written: {error.strerror}",
                hint=f"Choose another one: {variable}=DIR",
            ) from error
        if handle is None:
            _require_ours(run, _last_holder(run), variable)
            return cls(None)
        with closed_on_error(handle):
            if _is_recorded(run):
                _require_ours(run, _recording_holder(run), variable)
            end_torn_line(handle)
            handle.write(msgspec.json.encode(_ourselves(clock or SystemClock())) + b"\n")
        return cls(handle)

    @property
    def fd(self) -> int | None:
        """The descriptor whose lock it is; `None` if a process above us holds it, or nobody."""
        return self._handle.fd if self._handle else None

    def release(self) -> None:
        """Let the next one have it. Idempotent."""
        if self._handle:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> Self:
        """Hold it until the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()


def lease_of(run: RunDirectory) -> Holding:
    """Tell who holds a directory, or who held it last. Reads only; never fails."""
    if run.disk.is_leased(run.lease_path):
        return Holding(held=True, holder=_last_holder(run))
    if _is_recorded(run):
        return Holding(held=True, holder=_recording_holder(run))
    return Holding(held=False, holder=_last_holder(run))


def _require_ours(run: RunDirectory, holder: Holder | None, variable: str) -> None:
    """Return if the holder is this process or one above it.

    Raises:
        LeaseHeldError: it is another.
    """
    if holder and descends_from(holder.process):
        return
    raise LeaseHeldError(
        f"The output directory `{run.root}` is in use by {holder or 'another process'}",
        hint=f"Wait until it has ended, or choose another directory: {variable}=DIR",
        holder=holder,
    )


def _ourselves(clock: Clock) -> Holder:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return Holder(
        process=this_process(),
        since=clock.time(),
        directory=_working_directory(),
        command=_legible(command)[:_LONGEST_COMMAND],
    )


def _working_directory() -> str | None:
    try:
        return _legible(str(Path.cwd()))
    except FileNotFoundError:
        return None  # It was removed, which is no reason not to train.


def _legible(text: str) -> str:
    """Return a text of the system's that may hold bytes which are no characters."""
    return text.encode(errors="replace").decode()


def _last_holder(run: RunDirectory) -> Holder | None:
    """Return who wrote the last line of the lease that can be read."""
    try:
        lines = run.disk.load(run.lease_path).splitlines()
    except OSError:
        return None
    return next(filter(None, map(_holder_in, reversed(lines))), None)


def _holder_in(line: bytes) -> Holder | None:
    try:
        return msgspec.json.decode(line, type=Holder)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_recorded(run: RunDirectory) -> bool:
    """Tell whether a log writer provably holds a file in the directory."""
    return _traces(run).is_held()


def _recording_holder(run: RunDirectory) -> Holder | None:
    """Return the newest launch that the manifest lists, which is who writes the log."""
    newest = _traces(run).newest
    return Holder(process=newest.process, since=newest.started_at) if newest.process else None


def _traces(run: RunDirectory) -> Traces:
    traces = Traces(run)
    try:
        traces.look(run.disk.names(run.root))
    except OSError:
        return traces
    return traces


def _utc(since: float) -> str:
    when = dt.datetime.fromtimestamp(since, tz=dt.UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
