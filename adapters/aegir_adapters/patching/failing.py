"""How a sweep in the midst of a training fails: with all that is known of it, in one error."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from aegir_stream.errors import AegirError

__all__ = ["Failing", "SweepFailedError"]

_LONGEST_REASON: Final = 1000


class SweepFailedError(AegirError, RuntimeError):
    """A policy in training could not be swept, or a sweep of it came to no end."""


class Failing:
    """Raises `SweepFailedError` in the place of what is raised in its block; Ctrl-C goes its way.

    Args:
        what: what is done in the block, the subject of a sentence.
        tell: called with the reason, ahead of that.
    """

    def __init__(self, what: str, tell: Callable[[str], object] | None = None) -> None:
        self._what, self._tell = what, tell

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise what says more than what was raised."""
        if not isinstance(error, Exception):
            return
        if self._tell is not None:
            self._tell(f"{error}"[:_LONGEST_REASON])
        raise SweepFailedError(f"{self._what} failed: {type(error).__name__}: {error}") from error
