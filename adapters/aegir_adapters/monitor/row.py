"""One run as it is shown."""

from __future__ import annotations

import msgspec

from aegir_adapters.monitor import figures
from aegir_adapters.monitor.badge import Badge, badge_of
from aegir_stream.standing import RunStanding

__all__ = ["Row"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run: its name and where it stands, and both as text.

    The texts are empty where nothing is known.

    Attributes:
        name: what it is called among the others.
        standing: where it stands.
        now: wall-clock seconds since the epoch, when it was looked at.
    """

    name: str
    standing: RunStanding
    now: float = 0.0

    @property
    def badge(self) -> Badge:
        """Whether it goes on."""
        return badge_of(self.standing)

    @property
    def iteration(self) -> str:
        """How far it got, and of how many where that is known."""
        reached, total = self.standing.iteration, self.standing.total
        if reached is None and total is None:
            return ""
        text = "0" if reached is None else figures.count(reached)
        return text if total is None else f"{text}/{figures.count(total)}"

    @property
    def scores(self) -> list[float]:
        """The scores, in the order of the iterations."""
        return [score for _, score in self.standing.curve]

    @property
    def score(self) -> str:
        """Newest score."""
        return _text(self.standing.score)

    @property
    def best(self) -> str:
        """Highest score."""
        return _text(self.standing.best)

    @property
    def rate(self) -> str:
        """How fast it is, or was."""
        seconds = self.standing.rate
        return "" if seconds is None else figures.rate(seconds)

    @property
    def left(self) -> str:
        """Time left, of a run that goes on."""
        seconds = self.standing.remaining_s if self.standing.is_active else None
        return "" if seconds is None else figures.duration(seconds)

    @property
    def cost(self) -> str:
        """What it has cost so far."""
        return _text(self.standing.cost)

    @property
    def calls(self) -> str:
        """How often a model was called."""
        calls = self.standing.calls
        return "" if calls is None else figures.count(calls)

    @property
    def elapsed(self) -> str:
        """How long it has been going on, or took."""
        began, ended = self.standing.started_at, self.standing.ended_at
        until = self.now if self.standing.is_active else ended
        return "" if began is None or until is None else figures.duration(until - began)


def _text(value: float | None) -> str:
    return "" if value is None else figures.figure(value)
