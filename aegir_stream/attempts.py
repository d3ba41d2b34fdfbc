"""Which attempt of the run a writer belongs to."""

from __future__ import annotations

from aegir_stream.events import Open
from aegir_stream.layout import RunDirectory
from aegir_stream.lineage import read_header
from aegir_stream.opening import Authorship

__all__ = ["attempt_of"]


def attempt_of(run: RunDirectory, author: Authorship, *, stream: str, lane: str) -> int:
    """Return the number of the attempt that the writer of `lane` belongs to, from 1.

    An attempt is one launch of the run, and all its ranks share its number, in whatever order they
    arrive and whichever lanes earlier launches had. The highest number that stands anywhere is
    joined if another rank is writing under it now and resumed from the same checkpoint; otherwise
    that launch is over and the next number begins. A lane that already bears the highest number is
    what that launch left behind.

    The ranks agree through what each of them can see on the disk, the locks, rather than through a
    message from rank 0: no rank waits for another, and none must be told. Without locks on the
    file system every other rank counts as writing, which is right while the ranks stay the same
    or the checkpoint differs.

    Raises:
        OSError: the directory cannot be read.
    """
    openings = {name: _newest_opening(run, stream, name) for name in run.lanes(stream)}
    known = {name: opening for name, opening in openings.items() if opening}
    told = [entry.get("attempt", 0) for entry in run.read_manifest().get("attempts", [])]
    last: int = max([0, *told, *(opening.attempt for opening in known.values())])
    latest = {name: opening for name, opening in known.items() if opening.attempt == last}
    joins = lane not in latest and any(
        opening.continues == author.continues and _is_written(run, stream, name)
        for name, opening in latest.items()
    )
    return last if joins else last + 1


def _newest_opening(run: RunDirectory, stream: str, lane: str) -> Open | None:
    """Return the newest header of a lane; what a loss of power left may have none."""
    closed = [file.path for file in reversed(run.history(lane))]
    headers = (read_header(run, path) for path in [run.live(stream, lane), *closed])
    return next((header for header in headers if header), None)


def _is_written(run: RunDirectory, stream: str, lane: str) -> bool:
    try:
        return run.disk.is_held(run.live(stream, lane))
    except FileNotFoundError:
        return False
