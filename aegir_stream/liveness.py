"""Whether a run goes on, from what can be known about it. Pure.

Crashed needs proof; silence alone is only stalled, and ends with the next line.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = ["Evidence", "Status", "judge", "patience_s"]

Status: TypeAlias = Literal["active", "finished", "crashed", "stalled"]
"""`active`: it goes on, as far as is known. `finished`: it was ended by its own end marker.
`crashed`: its process is gone and left no end marker. `stalled`: silent for too long."""

SHORTEST_PATIENCE_S = 600.0
GAPS = 3.0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run.

    Attributes:
        ended: whether its newest attempt left an end marker.
        held: whether a writer holds one of its files.
        alive: whether its process lives; `None` where that cannot be told.
        quiet_s: seconds since something was written; `None` if nothing ever was.
        slowest_gap_s: longest time between two of its iterations; `None` if there were none.
    """

    ended: bool = False
    held: bool = False
    alive: bool | None = None
    quiet_s: float | None = None
    slowest_gap_s: float | None = None


def judge(evidence: Evidence) -> Status:
    """Return what the evidence says, the strongest first."""
    if evidence.ended:
        return "finished"
    if evidence.held or evidence.alive:
        return "active"
    if evidence.alive is False:
        return "crashed"
    fresh = evidence.quiet_s is not None and evidence.quiet_s < patience_s(evidence.slowest_gap_s)
    return "active" if fresh else "stalled"


def patience_s(slowest_gap_s: float | None) -> float:
    """Return how long a run may be silent: ten minutes, or three times its slowest iteration."""
    return max(SHORTEST_PATIENCE_S, GAPS * (slowest_gap_s or 0.0))
