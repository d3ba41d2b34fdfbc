"""Whether a stream is over: its writers closed it, and everything was told."""

from __future__ import annotations

from pathlib import Path

from aegir_stream.chunk import Delivery
from aegir_stream.events import CaughtUp, Close, SourceSwitch
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource, Start

__all__ = ["end_of_stream"]

_STREAM = "sae_features"


def end_of_stream(run: RunDirectory, *, after: str | None, start: Start = "start") -> str | None:
    """Return the cursor at the end, if nothing stands behind `after` and nothing will; else `None`.

    Nothing at all: what happened behind the last record (a resume that rewound it, a gap, how the
    run ended) is news as well. Without `after`, nothing may stand behind `start`. A run that a
    later attempt resumes is open again. Reads files.
    """
    lanes = run.lanes(_STREAM)
    if not lanes or not all(_is_closed(run, run.live(_STREAM, lane)) for lane in lanes):
        return None
    source = RunSource(run, _STREAM, after=after, start=start)
    while deliveries := source.poll():
        for delivery in deliveries:
            if isinstance(delivery, CaughtUp):
                return source.cursor.text()
            if not _is_introduction(delivery):
                return None
    return None


def _is_introduction(delivery: Delivery) -> bool:
    return isinstance(delivery, SourceSwitch) and delivery.verdict in {None, "resumed"}


def _is_closed(run: RunDirectory, path: Path) -> bool:
    try:
        return isinstance(run.ending_of(path), Close)
    except OSError:
        return False
