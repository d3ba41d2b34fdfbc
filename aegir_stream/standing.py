"""Where a run stands: how far it got, how well, at what cost, and whether it goes on.

From its progress feed, or from its checkpoints where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import SupportsFloat, TypeAlias

import msgspec

from aegir_stream.clock import SystemClock
from aegir_stream.feed_reader import FeedReader
from aegir_stream.feed_rows import finite
from aegir_stream.layout import RunDirectory
from aegir_stream.liveness import Evidence, Status, judge
from aegir_stream.traces import Traces
from aegir_stream.trajectory import Curve
from aegir_stream.typing import Clock

__all__ = ["Costs", "RunStanding", "RunWatch", "run_state"]

Costs: TypeAlias = Callable[[RunDirectory], tuple[float | None, float | None]]
"""Returns what a run has cost so far, and how often a model was called; `None` where unknown. What
it raises because of what it reads (`OSError`, `ValueError`, `TypeError`, `LookupError`,
`ArithmeticError`, or an error of msgspec) counts as unknown."""

_MOST_POINTS = 1_000
_MISREAD = (ArithmeticError, LookupError, OSError, TypeError, ValueError, msgspec.MsgspecError)


class RunStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands. All numbers are finite.

    Attributes:
        status: whether it goes on.
        iteration: highest iteration of the feed, or step of the checkpoints.
        score: newest score.
        best: highest score.
        curve: (iteration, score) in order, thinned where there are many.
        cost: what it has cost so far.
        calls: how often a model was called so far.
        total: how many iterations it means to make.
        started_at: when its newest launch began, seconds since the epoch.
        ended_at: when that ended.
        ending: how that ended, in the writer's word: `finished`, `stopped`, `failed`.
        rate: seconds per iteration, of late.
        remaining_s: seconds until `total` at that rate.
        rows: rows of the feed.
        skipped: lines of the feed that were no rows.
    """

    status: Status
    iteration: int | None = None
    score: float | None = None
    best: float | None = None
    curve: Curve = []
    cost: float | None = None
    calls: float | None = None
    total: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    ending: str | None = None
    rate: float | None = None
    remaining_s: float | None = None
    rows: int = 0
    skipped: int = 0

    @property
    def is_active(self) -> bool:
        """Whether it goes on, as far as is known."""
        return self.status == "active"


def run_state(
    run: RunDirectory, *, now: float | None = None, costs: Costs | None = None
) -> RunStanding:
    """Look at a run once.

    Args:
        run: the run directory; it need not be there.
        now: wall-clock seconds since the epoch; the present if absent.
        costs: tells what the run has cost; the feed does if absent.
    """
    return RunWatch(run, costs=costs).look(now=now)


class RunWatch:
    """Looks at a run again and again, each time only at what is new. Never fails.

    Args:
        run: the run directory; it need not be there yet.
        clock: what tells how long a run has been silent.
        costs: tells what the run has cost; the feed does if absent.
        points: how many points the curve has at most, at least 4.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        clock: Clock | None = None,
        costs: Costs | None = None,
        points: int = _MOST_POINTS,
    ) -> None:
        self.run = run
        self._clock = clock or SystemClock()
        self._costs = costs
        self._points = points
        self._feed = FeedReader(run, clock=self._clock)
        self._traces = Traces(run)
        self._seen_s: float | None = None
        self._standing: RunStanding | None = None

    def look(self, *, now: float | None = None) -> RunStanding:
        """Return where the run stands: the same object as long as nothing is different.

        Args:
            now: wall-clock seconds since the epoch; what the clock tells if absent.
        """
        before = self._standing
        moved = self._has_moved()
        if before and moved:
            self._seen_s = self._clock.monotonic()
        spent = self._spent()
        settled = before and not moved and before.status in {"finished", "crashed"}
        status = before.status if before and settled else self._status(now)
        if before and not moved and (before.status, before.cost, before.calls) == (status, *spent):
            return before
        self._standing = self._stand(status, *spent)
        return self._standing

    def _has_moved(self) -> bool:
        try:
            read = self._feed.poll()
        except OSError:
            read = False
        recorded = self._traces.look(self._feed.names)
        return read or recorded

    def _spent(self) -> tuple[float | None, float | None]:
        if self._costs is None:
            return self._feed.cost, self._feed.calls
        try:
            cost, calls = self._costs(self.run)
            return _number(cost), _number(calls)
        except _MISREAD:
            return None, None

    # -- whether it goes on ------------------------------------------------------------------------

    def _status(self, now: float | None) -> Status:
        if self._traces.has_ended():
            return "finished"
        alive = self._traces.is_alive()
        held = not alive and self._traces.is_held()
        return judge(
            Evidence(
                held=held,
                alive=alive,
                quiet_s=self._quiet_s(self._clock.time() if now is None else now),
                slowest_gap_s=self._feed.slowest_gap_s,
            )
        )

    def _quiet_s(self, now: float) -> float | None:
        """Return how long nothing was written.

        Other hosts have other clocks: a time in the future is as far off as one in the past, and
        what was seen to happen happened then.
        """
        quiet = [abs(now - written) for written in self._traces.written_at()]
        # That a run was removed is no sign of life.
        if quiet and self._seen_s is not None:
            quiet.append(self._clock.monotonic() - self._seen_s)
        return min(quiet, default=None)

    # -- how far it got ----------------------------------------------------------------------------

    def _stand(self, status: Status, cost: float | None, calls: float | None) -> RunStanding:
        feed, launch = self._feed, self._traces.newest
        iteration = feed.iteration if feed.rows else self._traces.newest_step
        started_at = finite(launch.started_at)
        rate = _rate(list(feed.recent), since=started_at)
        return RunStanding(
            status=status,
            iteration=iteration,
            score=feed.score,
            best=feed.trajectory.best,
            curve=feed.trajectory.curve(most=self._points),
            cost=cost,
            calls=calls,
            total=launch.total,
            started_at=feed.began if started_at is None else started_at,
            ended_at=finite(launch.ended_at),
            ending=launch.status or self._traces.closed_as,
            rate=rate,
            remaining_s=_remaining_s(launch.total, iteration, first=feed.first, rate=rate),
            rows=feed.rows,
            skipped=feed.skipped,
        )


def _rate(times: Sequence[float], *, since: float | None) -> float | None:
    """Return the seconds between two rows, of those behind a time and the last step back in it."""
    recent: list[float] = []
    for ts in reversed(times):
        if (since is not None and ts < since) or (recent and ts > recent[-1]):
            break
        recent.append(ts)
    spent = recent[0] - recent[-1] if recent else 0.0
    return finite(spent / (len(recent) - 1)) if spent > 0 else None


def _remaining_s(
    total: int | None, iteration: int | None, *, first: int | None, rate: float | None
) -> float | None:
    if total is None or iteration is None or rate is None:
        return None
    # Some count from 0, and are done one sooner.
    done = iteration + 1 if first == 0 else iteration
    return finite(max(0, total - done) * rate)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return None
    return finite(float(value))
