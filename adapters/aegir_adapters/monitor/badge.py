"""Whether a run goes on, in a word and a colour."""

from __future__ import annotations

import msgspec

from aegir_stream.standing import RunStanding

__all__ = ["Badge", "badge_of"]


class Badge(msgspec.Struct, frozen=True):
    """A word, which says it all, and the colour it is shown in.

    Attributes:
        word: one of `live`, `stalled`, `crashed`, `failed`, `stopped`, `finished`.
        style: as rich names it.
        rank: place in the order of activity, what goes on first.
    """

    word: str
    style: str
    rank: int


_LIVE = Badge("live", "bold green", 0)
_STALLED = Badge("stalled", "bold yellow", 1)
_CRASHED = Badge("crashed", "bold red", 2)
_FINISHED = Badge("finished", "blue", 3)
_ENDINGS = {"failed": Badge("failed", "bold red", 3), "stopped": Badge("stopped", "magenta", 3)}


def badge_of(standing: RunStanding) -> Badge:
    """Return the badge of a run. One that ended otherwise than by finishing says how."""
    match standing.status:
        case "active":
            return _LIVE
        case "stalled":
            return _STALLED
        case "crashed":
            return _CRASHED
        case "finished":
            return _ENDINGS.get(standing.ending or "", _FINISHED)
