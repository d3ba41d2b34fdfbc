"""Whether a stream is over: its writers closed it, and everything was read."""

from __future__ import annotations

from pathlib import Path

from aegir_stream.chunk import Chunk
from aegir_stream.events import CaughtUp, Close, Idle, SourceSwitch
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource, Start

__all__ = ["end_of_stream"]

_STREAM = "sae_features"


def end_of_stream(run: RunDirectory, *, after: str | None, start: Start = "start") -> str | None:
    """Return the cursor at the end, if no record stands behind `after` and none will; else `None`.

    Without `after`, none may stand behind `start`. A run that a later attempt resumes is
    open again. Reads files.
    """
    lanes = run.lanes(_STREAM)
    if not lanes or not all(_is_closed(run, run.live(_STREAM, lane)) for lane in lanes):
        return None
    source = RunSource(run, _STREAM, after=after, start=start)
    while deliveries := source.poll():
        for delivery in deliveries:
            if isinstance(delivery, Chunk | Idle) or _is_refused(delivery):
                return None
            if isinstance(delivery, CaughtUp):
                return source.cursor.text()
    return None


def _is_refused(delivery: object) -> bool:
    return isinstance(delivery, SourceSwitch) and delivery.verdict not in {None, "resumed"}


def _is_closed(run: RunDirectory, path: Path) -> bool:
    try:
        return isinstance(run.ending_of(path), Close)
    except OSError:
        return False
