"""What starts a sweep that is asked for on a page; given from outside, for web has no models."""

from __future__ import annotations

from typing import Protocol

import msgspec

from aegir_adapters.web.sweep_order import SweepOrder
from aegir_stream.errors import AegirError
from aegir_stream.layout import RunDirectory

__all__ = ["BusyError", "Starting", "SweepOrder", "SweepStarter"]


class Starting(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the newest order for a run.

    Attributes:
        order: what was asked for.
        running: whether it is at work, or still loads its model.
        error: why it came to nothing; `None` if it did not.
    """

    order: SweepOrder
    running: bool
    error: str | None = None


class BusyError(AegirError, RuntimeError):
    """A sweep of the run is being made."""


class SweepStarter(Protocol):
    """Starts sweeps, one at a time for each run. Called from worker threads, by one at a time."""

    def refusal(self) -> str | None:
        """Return why no sweep can be started, and the remedy; `None` if one can."""
        ...

    def start(self, run: RunDirectory, order: SweepOrder) -> None:
        """Start a sweep, which records itself in the run.

        Raises:
            BusyError: one of the run is being made.
            OSError: the system does not let it.
        """
        ...

    def look(self, run: RunDirectory) -> Starting | None:
        """Return what became of the newest order for a run; `None` if there was none."""
        ...

    def stop(self, run: RunDirectory) -> None:
        """Cancel the sweep of a run that is being made, if there is one."""
        ...
