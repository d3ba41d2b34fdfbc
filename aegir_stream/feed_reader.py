"""Read a progress feed as it grows.

Any program may append to it, so nothing about it is taken for granted. Iterations come out of
order and again after a resume, scores are missing or not finite, the last line is unfinished,
bytes are damaged, the file is replaced by another.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aegir_stream.clock import SystemClock
from aegir_stream.cursor import GUARD_BYTES
from aegir_stream.disk import Disk
from aegir_stream.feed_rows import Row, decode_rows, fields_of_row, finite
from aegir_stream.layout import RunDirectory
from aegir_stream.listing import Listing
from aegir_stream.system import Inode, Status
from aegir_stream.tail import Look, Tail
from aegir_stream.trajectory import Trajectory
from aegir_stream.typing import Clock

__all__ = ["FeedReader", "progress_trajectory", "read_progress"]

STREAM = "progress"
_RECENT = 64


class FeedReader:
    """Reads what was appended to a run's progress feed since the last look.

    Several writers have a file each; all are read, one after the other in the order of their lanes,
    so that the same files always give the same result.

    Args:
        run: the run directory; it need not be there yet.
        clock: tells how long the directory was left alone.

    Attributes:
        trajectory: scores by iteration.
        iteration: highest iteration, `None` before the first row.
        first: lowest iteration.
        began: `ts` of the first row that has one.
        score: newest finite score.
        rows: rows read.
        skipped: lines that were no rows.
        cost: newest finite `cost` of a row: what the run has cost so far.
        calls: newest finite `calls`: how often a model was called so far.
        recent: `ts` of the newest rows, oldest first.
        slowest_gap_s: longest time between two rows, by their `ts`.
    """

    def __init__(self, run: RunDirectory, *, clock: Clock | None = None) -> None:
        self._run = run
        self._listing = Listing(run.disk, run.root, clock=clock or SystemClock())
        self._files: list[_File] = []
        self._begin()

    @property
    def names(self) -> list[str]:
        """The names in the run directory, at the last look."""
        return self._listing.names

    def poll(self) -> bool:
        """Read what is new; tell whether anything changed.

        Raises:
            OSError: the run directory is there and cannot be listed.
        """
        again = self._listing.look() and self._find_files()
        fresh = [file for file in self._files if file.has_changed()]
        # Rows count in the order of the files: what a file gets that is not the last comes between.
        again = again or any(file.is_another or file is not self._files[-1] for file in fresh)
        if again:
            fresh = self._files
            self._begin()
        changed = [self._read(file) for file in fresh]
        return again or any(changed)

    def _find_files(self) -> bool:
        """Learn which files there are; tell whether one that was read is gone or no longer last."""
        paths = self._run.live_files(STREAM, self._listing.names)
        known = {file.path: file for file in self._files}
        before = [file for file in self._files if file.offset]
        self._files = [known.get(path) or _File(self._run.disk, path) for path in paths]
        return self._files[: len(before)] != before

    def _begin(self) -> None:
        for file in self._files:
            file.begin()
        self.trajectory = Trajectory()
        self.iteration: int | None = None
        self.first: int | None = None
        self.began: float | None = None
        self.score: float | None = None
        self.rows = 0
        self.skipped = 0
        self.cost: float | None = None
        self.calls: float | None = None
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.slowest_gap_s: float | None = None

    def _read(self, file: _File) -> bool:
        """Read one file up to its last whole line; tell whether anything changed."""
        changed = False
        for look in file.looks():
            rows, skipped = decode_rows(look.lines)
            self.skipped += skipped + len(look.skipped)
            if rows:
                self._take(rows)
            changed = changed or bool(rows or skipped or look.skipped)
        return changed

    def _take(self, rows: Sequence[Row]) -> None:
        iterations = [row.iteration for row in rows]
        scores = [row.score for row in rows]
        self.rows += len(rows)
        self.trajectory.extend(iterations, scores)
        highest, lowest = max(iterations), min(iterations)
        self.iteration = highest if self.iteration is None else max(self.iteration, highest)
        self.first = lowest if self.first is None else min(self.first, lowest)
        self.score = _newest(scores, self.score)
        self.cost = _newest([row.cost for row in rows], self.cost)
        self.calls = _newest([row.calls for row in rows], self.calls)
        self._time([row.ts for row in rows])

    def _time(self, times: Sequence[float | None]) -> None:
        known = [ts for ts in times if ts is not None and math.isfinite(ts)]
        if self.began is None and known:
            self.began = known[0]
        ends = [*self._last_ts(), *known]
        longest = finite(max(map(operator.sub, ends[1:], ends), default=None))
        if longest is not None and longest > (self.slowest_gap_s or 0.0):
            self.slowest_gap_s = longest
        self.recent.extend(known)

    def _last_ts(self) -> list[float]:
        return [self.recent[-1]] if self.recent else []


class _File:
    """One file of a feed, read up to an offset.

    Attributes:
        path: the file.
        status: what the system told of it when it was read; `None` if that has to be done again.
        is_another: whether it is another file than the one that was read.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self.path = path
        self.begin()

    @property
    def offset(self) -> int:
        """How far it was read."""
        return self._tail.offset

    def begin(self) -> None:
        """Read from the start next."""
        self._tail = Tail(self._disk, self.path)
        self._inode: Inode | None = None
        self._end: bytes | None = None
        self.status: Status | None = None
        self.is_another = False

    def has_changed(self) -> bool:
        """Tell whether something happened to the file since it was read."""
        try:
            status = self._disk.status(self.path)
        except OSError:
            return False  # A dead mount says nothing; what was read stays.
        if status == self.status:
            return False
        self.is_another = self.is_another or not self._continues(status)
        return True

    def looks(self) -> Iterator[Look]:
        """Read what is there, whole lines."""
        try:
            status = self._disk.status(self.path)
        except OSError:
            return
        while (look := self._tail.look()).outcome == "lines":
            yield look
        yield look
        if status:
            self._inode, self._end = status.inode, self._before_offset()
        self.status = status if look.outcome == "end" else None
        self.is_another = look.outcome in {"replaced", "truncated"}

    def _continues(self, status: Status | None) -> bool:
        """Tell whether the file goes on from where it was read.

        A file that was written anew may begin with the same lines, and be longer already.
        """
        if not self.offset:
            return True
        if status is None or status.inode != self._inode:
            return False
        return self._before_offset() == self._end

    def _before_offset(self) -> bytes | None:
        start = max(0, self.offset - GUARD_BYTES)
        try:
            return self._disk.read(self.path, offset=start, size=self.offset - start).data
        except OSError:
            return None


def read_progress(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the rows of a run's progress feed, as they were written, sorted by `iter`.

    The last row of an iteration counts. Lines that are no rows, and an unfinished last line, are
    left out. A run without a feed has no rows.

    Raises:
        OSError: the run directory is there and cannot be listed.
    """
    rows: dict[int, dict[str, Any]] = {}
    for lane in run.lanes(STREAM):
        for look in _File(run.disk, run.live(STREAM, lane)).looks():
            for fields in filter(None, map(fields_of_row, look.lines)):
                rows[fields["iter"]] = fields
    return [rows[iteration] for iteration in sorted(rows)]


def progress_trajectory(run: RunDirectory) -> Trajectory:
    """Return the finite scores of a run's progress feed by iteration, and the best so far.

    Raises:
        OSError: the run directory is there and cannot be listed.
    """
    reader = FeedReader(run)
    reader.poll()
    return reader.trajectory


def _newest(values: Sequence[float | None], otherwise: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return next((v for v in reversed(known) if math.isfinite(v)), otherwise)
