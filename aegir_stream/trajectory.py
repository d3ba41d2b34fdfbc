"""The score of every iteration, in order, and the best so far. Compact: sixteen bytes a score."""

from __future__ import annotations

import math
import operator
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice

__all__ = ["Curve", "Trajectory", "landmarks"]

Curve = list[tuple[int, float]]
"""(iteration, score) pairs, in the order of their iterations."""

_FEW = 32
"""So many late scores are put in their places one by one; of more, the whole is sorted anew."""


class Trajectory:
    """Scores by iteration; the last score that was put for an iteration counts.

    Scores that are missing or not finite are no points. Iterations, which fit 64 bits, may come in
    any order; those that come in their own are put at the end in constant time.
    """

    def __init__(self) -> None:
        self._iterations = array("q")
        self._scores = array("d")
        self._late: dict[int, float | None] = {}
        self._bests: Curve = []
        self._judged = 0

    def __len__(self) -> int:
        """Return the number of points."""
        self._settle()
        return len(self._scores)

    def put(self, iteration: int, score: float | None) -> None:
        """Take the score of an iteration, in the place of an earlier one."""
        finite = score if score is not None and math.isfinite(score) else None
        if self._iterations and iteration <= self._iterations[-1]:
            self._late[iteration] = finite
        elif finite is not None:
            self._iterations.append(iteration)
            self._scores.append(finite)

    def extend(self, iterations: Sequence[int], scores: Sequence[float | None]) -> None:
        """Take the scores of several iterations, one after the other."""
        if self._continues(iterations) and None not in scores:
            finite = [score for score in scores if score is not None]
            if all(map(math.isfinite, finite)):
                self._iterations.extend(iterations)
                self._scores.extend(finite)
                return
        for iteration, score in zip(iterations, scores, strict=True):
            self.put(iteration, score)

    @property
    def best(self) -> float | None:
        """Highest score, `None` without a point."""
        self._judge()
        return self._bests[-1][1] if self._bests else None

    @property
    def bests(self) -> Curve:
        """The points at which a new best was reached."""
        self._judge()
        return list(self._bests)

    def curve(self, *, most: int | None = None) -> Curve:
        """Return the points.

        Args:
            most: how many at the most, at least 4; of a longer trajectory the first, the last, and
                the lowest and the highest of each stretch between are kept.
        """
        count = len(self)
        if most is None or count <= most:
            return list(zip(self._iterations, self._scores, strict=True))
        return [(self._iterations[at], self._scores[at]) for at in landmarks(self._scores, most)]

    def _judge(self) -> None:
        """Find the bests among the points that were not looked at yet."""
        self._settle()
        count = len(self._scores)
        if self._judged < count:
            best = self._bests[-1][1] if self._bests else -math.inf
            fresh = islice(self._scores, self._judged, None)
            for at, score in enumerate(fresh, start=self._judged):
                if score > best:
                    best = score
                    self._bests.append((self._iterations[at], score))
            self._judged = count

    def _continues(self, iterations: Sequence[int]) -> bool:
        """Tell whether each iteration comes after the one before it."""
        if not iterations or (self._iterations and iterations[0] <= self._iterations[-1]):
            return False
        return all(map(operator.lt, iterations, islice(iterations, 1, None)))

    def _settle(self) -> None:
        """Put the scores that came late in their places."""
        late, self._late = self._late, {}
        if not late:
            return
        self._forget_bests(min(late))
        if len(late) <= _FEW:
            for iteration, score in late.items():
                self._place(iteration, score)
            return
        table: dict[int, float | None] = dict(zip(self._iterations, self._scores, strict=True))
        points = [(i, s) for i, s in sorted((table | late).items()) if s is not None]
        self._iterations = array("q", [iteration for iteration, _ in points])
        self._scores = array("d", [score for _, score in points])

    def _place(self, iteration: int, score: float | None) -> None:
        at = bisect_left(self._iterations, iteration)
        known = at < len(self._iterations) and self._iterations[at] == iteration
        if known and score is not None:
            self._scores[at] = score
        elif known:
            del self._iterations[at], self._scores[at]
        elif score is not None:
            self._iterations.insert(at, iteration)
            self._scores.insert(at, score)

    def _forget_bests(self, since: int) -> None:
        """Forget what was the best from an iteration on."""
        self._judged = min(self._judged, bisect_left(self._iterations, since))
        while self._bests and self._bests[-1][0] >= since:
            self._bests.pop()


def landmarks(scores: Sequence[float], most: int) -> list[int]:
    """Return the places of at most `most` scores that show what a long series looks like.

    The first and the last, and the lowest and the highest of each stretch between them.

    Args:
        scores: finite; more than `most` of them.
        most: at least 4.
    """
    count, stretches = len(scores), max(1, (most - 2) // 2)
    kept = {0, count - 1}
    for number in range(stretches):
        first = 1 + (count - 2) * number // stretches
        stretch = scores[first : 1 + (count - 2) * (number + 1) // stretches]
        kept |= {first + stretch.index(min(stretch)), first + stretch.index(max(stretch))}
    return sorted(kept)
