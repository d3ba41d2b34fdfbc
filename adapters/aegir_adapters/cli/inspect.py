"""`aegir inspect`: what the files of a run hold."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegir_adapters.cli.arguments import DEFAULT_RUN, Run, open_log
from aegir_adapters.cli.notes import note_lines
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_stream.chunk import Chunk
from aegir_stream.events import Corrupt, Gap, Note
from aegir_stream.lane import LaneReader
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.lineage import Lineage, read_header, survey
from aegir_stream.manifest import look_at_manifest

__all__ = ["SegmentRow", "ToldNote", "inspect"]


class ToldNote(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the writer of a segment told its readers, such as the capture self-test."""

    kind: str
    detail: dict[str, Any]


class SegmentRow(msgspec.Struct, kw_only=True):
    """One segment of a run, as it is listed."""

    stream: str
    lane: str
    segment: int
    source: str
    attempt: int | None
    survives: bool
    records: int = 0
    dropped: int = 0
    damaged: int = 0
    bytes: int = 0
    path: str = ""
    notes: list[ToldNote] = []


def inspect(
    run: Run = DEFAULT_RUN,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as in a pipe; else a table.")
    ] = False,
) -> None:
    """List the segments of a run: what each holds, whether it survives resumes, what is damaged.

    Below them, what the log says about itself: the self-test of the first step, what is joined and
    sampled, in what a resumed run differs.

    Reads every file once. Example: aegir inspect runs/demo-1
    """
    directory = open_log(run)
    rows = [row for name in STREAMS for row in _rows(directory, name)]
    if as_json or not sys.stdout.isatty():
        with quiet_pipe():
            for row in rows:
                sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    console = Console()
    console.print(_identity(directory))
    console.print(_table(rows))
    for line in _told(rows):
        console.print(line, markup=False, highlight=False)


def _rows(run: RunDirectory, stream: str) -> Iterator[SegmentRow]:
    for lane in run.lanes(stream):
        lineage = survey(run, stream=stream, lane=lane)
        surviving = set(lineage.surviving(run))
        rows = {n: _row(run, stream, lane, lineage, n) for n in lineage.all()}
        _count(LaneReader(run, stream=stream, lane=lane, plan=lineage.all()), rows)
        for number, row in rows.items():
            row.survives = number in surviving
            yield row


def _row(run: RunDirectory, stream: str, lane: str, lineage: Lineage, number: int) -> SegmentRow:
    place = lineage.places[number]
    header = read_header(run, place.path)
    return SegmentRow(
        stream=stream,
        lane=lane,
        segment=number,
        source=place.source,
        attempt=header.attempt if header else None,
        survives=True,
        bytes=place.path.stat().st_size,
        path=str(place.path.relative_to(run.root)),
    )


def _count(reader: LaneReader, rows: dict[int, SegmentRow]) -> None:
    while placed := reader.poll():
        for delivery, at in placed:
            row = rows[at.segment]
            match delivery:
                case Chunk(records=records):
                    row.records += len(records)
                case Note(kind=kind, detail=detail):
                    row.notes.append(ToldNote(kind=kind, detail=detail))
                case Gap(records=dropped):
                    row.dropped += dropped
                case Corrupt(lines=lines):
                    row.damaged += lines


def _identity(run: RunDirectory) -> str:
    manifest = look_at_manifest(run)
    attempts = manifest.get("attempts", ())
    return f"run {manifest.get('run_id', 'without a manifest')}, {len(attempts)} attempt(s)"


def _told(rows: list[SegmentRow]) -> Iterator[str]:
    """Yield the notes of the segments that survive, each under the file that it stands in."""
    for row in rows:
        if row.survives and row.notes:
            yield f"{row.path} (attempt {row.attempt or '-'})"
            for note in row.notes:
                for line in note_lines(Note(kind=note.kind, detail=note.detail)):
                    yield f"  {line}"


def _table(rows: list[SegmentRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("attempt", "survives", "records", "dropped", "damaged"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        survives = "yes" if row.survives else "no"
        figures = (row.attempt or "-", survives, row.records, row.dropped, row.damaged)
        table.add_row(row.path, *map(str, figures))
    return table
