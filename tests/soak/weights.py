"""Runs that are large, written fast: one append over and over."""

from __future__ import annotations

from pathlib import Path

from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from aegir_stream.testing import make_append, make_record
from aegir_stream.typing import Append
from core.runs import drive

__all__ = ["heavy_append", "heavy_run"]


def heavy_append() -> Append:
    """Return an append of about 600 KB."""
    return make_append(*(make_record(token=token) for token in range(4000)))


def heavy_run(root: Path, *, mib: int) -> tuple[RunDirectory, int]:
    """Write a run of one segment; return it and how many records it holds."""
    run, append = RunDirectory.at(root), heavy_append()
    sink = JournalSink(run)
    appends = (mib << 20) // len(append.data) + 1
    drive(sink.open())
    for _ in range(appends):
        drive(sink.write(append))
    drive(sink.aclose())
    return run, appends * append.records
