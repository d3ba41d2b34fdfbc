"""When a training is interrupted to look at its policy, and for how much of its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from aegir_stream.clock import SystemClock
from aegir_stream.errors import OptionError
from aegir_stream.typing import Clock

__all__ = ["Occasions", "TimeAccount"]


class Occasions(msgspec.Struct, frozen=True, kw_only=True):
    """At which steps the policy is swept.

    Attributes:
        every_steps: after every so many steps; `None` for none of these.
        steps: after these as well.
        start: before the first step of a training.

    Raises:
        OptionError: `every_steps` or one of `steps` is less than 1, or there is no occasion at all.
    """

    every_steps: int | None
    steps: frozenset[int]
    start: bool

    def __post_init__(self) -> None:
        """Check the numbers."""
        every = [] if self.every_steps is None else [("every_steps", self.every_steps)]
        for name, value in [*every, *(("steps", step) for step in sorted(self.steps))]:
            if value < 1:
                raise OptionError(
                    f"Expected `{name}` >= 1, got {value}",
                    hint="The policy before the first step is swept with start=True",
                )
        if not (self.every_steps or self.steps or self.start):
            raise OptionError(
                "Expected an occasion to sweep at, got none", hint="Pass every_steps=20"
            )

    def after(self, step: int) -> bool:
        """Tell whether the policy is swept after a step."""
        return step in self.steps or bool(self.every_steps and step % self.every_steps == 0)


class TimeAccount:
    """How much of a training's time sweeps have taken.

    Args:
        share: how much of it they may take, in (0, 1]; `None` for as much as they need.
        clock: where time comes from.

    Attributes:
        spent_s: seconds that sweeps have taken.

    Raises:
        OptionError: `share` is out of range.
    """

    def __init__(self, share: float | None, *, clock: Clock | None = None) -> None:
        if share is not None and not 0 < share <= 1:
            raise OptionError(
                f"Expected `share` in (0, 1], got {share}",
                hint="Pass 0.05 for a twentieth of the training's time, or None for no bound",
            )
        self._share = share
        self._clock = clock or SystemClock()
        self._last_s = 0.0
        self.spent_s = 0.0
        self.begin()

    def begin(self) -> None:
        """Let the training's time begin."""
        self._began_s = self._clock.monotonic()

    def affords_another(self) -> bool:
        """Tell whether sweeps keep to their share if the next takes as long as the last did."""
        if self._share is None or not self.spent_s:
            return True
        elapsed_s = self._clock.monotonic() - self._began_s
        return self.spent_s + self._last_s <= self._share * elapsed_s

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charge what is done in the block, however it ends."""
        began_s = self._clock.monotonic()
        try:
            yield
        finally:
            self._last_s = self._clock.monotonic() - began_s
            self.spent_s += self._last_s
