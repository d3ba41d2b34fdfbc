"""The manifest of a run, made where there is none, and made anew where it is damaged.

Nothing in it is needed for reading the log, and its loss is no reason not to write one.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgspec

from aegir_stream.events import SCHEMA, Open
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.lineage import read_header

__all__ = ["ensure_manifest", "look_at_manifest"]

_DAMAGED = (msgspec.MsgspecError, UnicodeDecodeError)


def ensure_manifest(run: RunDirectory, *, created_at: float) -> dict[str, Any]:
    """Return what `aegir_run.json` says, or write one that lists no attempt, and return that.

    It bears the identity that the newest segment names, so that readers know the log again. A
    damaged manifest is kept beside the new one, as `aegir_run.json.damaged-1` and so on.

    Args:
        run: the run directory.
        created_at: wall-clock seconds since the epoch, for a new one.

    Raises:
        OSError: it cannot be read or written.
    """
    try:
        there = run.read_manifest()
    except _DAMAGED:
        run.set_manifest_aside()
        there = {}
    if there.get("run_id"):
        return there
    known = _newest_opening(run)
    log = known.log if known else os.urandom(6).hex()
    blank = {"run_id": log, "schema": SCHEMA, "created_at": created_at, "attempts": []}
    new = {**blank, **there, "run_id": log}
    if there:
        run.write_manifest(new)
    return run.ensure_manifest(new)


def look_at_manifest(run: RunDirectory) -> dict[str, Any]:
    """Return what `aegir_run.json` says; nothing where it is missing or damaged or refused."""
    with contextlib.suppress(OSError, *_DAMAGED):
        return run.read_manifest()
    return {}


def _newest_opening(run: RunDirectory) -> Open | None:
    """Return the `Open` line of the newest attempt that any file begins with."""
    paths = []
    for stream in STREAMS:
        for lane in run.lanes(stream):
            paths.append(run.live(stream, lane))
            paths += [file.path for file in run.history(lane) if STREAMS[stream].sealed]
    openings = [opening for opening in (read_header(run, path) for path in paths) if opening]
    return max(openings, key=lambda opening: opening.attempt, default=None)
