"""The situations in which something here fails, each with its remedy.

Every leaf also inherits the standard exception that a caller would catch.
"""

from __future__ import annotations


class AegirError(Exception):
    """Root of all errors raised on purpose.

    Attributes:
        hint: what to do about it, one sentence, with the exact command where there is one.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, followed by the hint."""
        message = super().__str__()
        return f"{message}. {self.hint}" if self.hint else message


class MalformedEventError(AegirError, ValueError):
    """A line of a log is not the event it should be."""


class CursorError(AegirError, ValueError):
    """A cursor is malformed, foreign to this log, or expired.

    Attributes:
        verdict: `malformed`, `foreign` or `expired`.
    """

    def __init__(self, message: str, *, verdict: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict


class OptionError(AegirError, ValueError):
    """An option was given a value that it may not have."""


class StepError(AegirError, ValueError):
    """What should name a step or a checkpoint names neither."""


class RunExistsError(AegirError, FileExistsError):
    """A fresh run was asked for in a directory that holds something already."""


class RunNotFoundError(AegirError, FileNotFoundError):
    """The directory named as a run does not exist or holds no log."""


class UnreadableRunError(AegirError, PermissionError):
    """The directory named as a run cannot be read or written."""


class SinkClosedError(AegirError, RuntimeError):
    """Something was written to a sink after it was closed."""


class UnsyncedError(AegirError, OSError):
    """What was written can be read, but may not survive a loss of power."""


class WriteLostError(AegirError, OSError):
    """A write failed and records were lost.

    Attributes:
        records_lost: how many.
    """

    def __init__(self, message: str, *, records_lost: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.records_lost = records_lost


class LayerError(AegirError, ValueError):
    """A layer index or count does not fit the model."""


class ShapeError(AegirError, ValueError):
    """Two things that must have the same width do not."""


class SAEFormatError(AegirError, ValueError):
    """Files that should hold an SAE do not hold one of a known format."""


class IdentityDriftError(AegirError, ValueError):
    """A resumed run differs from what it was recorded with."""


class RefusedError(AegirError, PermissionError):
    """A resource belongs to the primary checkout, and this is a secondary one."""


class PortInUseError(AegirError, OSError):
    """Another process listens on the port."""


class MissingExtraError(AegirError, ImportError):
    """A part was used whose optional dependencies are not installed."""

    def __init__(self, module: str, *, extra: str) -> None:
        super().__init__(
            f"{module} is not installed",
            hint=f"Install it with: pip install 'aegir-stream[{extra}]'",
        )
        self.extra = extra
