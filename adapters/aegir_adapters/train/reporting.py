"""Who is told how a training run comes along."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["Advance", "Reporter", "Silent"]


class Advance(Protocol):
    """Tells how far a phase has come."""

    def __call__(self, done: int, note: str = "") -> None:
        """Say that `done` of the phase's total are done; `note` is the newest figure."""
        ...


class Reporter(Protocol):
    """Who is told about a run."""

    def phase(self, title: str, *, total: int) -> AbstractContextManager[Advance]:
        """Open a phase of `total` parts; leaving the context ends it."""
        ...

    def say(self, line: str) -> None:
        """Tell one thing worth knowing, between phases."""
        ...


class Silent:
    """Tells nobody: every rank but the first."""

    @contextmanager
    def phase(self, title: str, *, total: int) -> Iterator[Advance]:  # noqa: ARG002
        """Open a phase that nobody sees."""
        yield lambda done, note="": None  # noqa: ARG005

    def say(self, line: str) -> None:
        """Say nothing."""
