"""`aegir sweeps`: the patch sweeps that a run holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegir_adapters.cli.arguments import DEFAULT_RUN, Run, open_run
from aegir_adapters.cli.extras import require
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.cli.sweep_display import print_picture
from aegir_stream import codec
from aegir_stream.errors import RunNotFoundError
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import SweepExtreme
from aegir_stream.sweep_reader import SweepReader, SweepStatus

__all__ = ["SweepRow", "sweeps"]

_LATEST = "latest"


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, as it is listed."""

    sweep: str
    status: SweepStatus
    model: str | None
    metric: str | None
    answer: str | None
    foil: str | None
    hooks: tuple[str, ...]
    cells: int
    of: int
    best: tuple[SweepExtreme, ...]


def sweeps(
    run: Run = DEFAULT_RUN,
    sweep: Annotated[
        str | None, typer.Argument(help="Number of one, or `latest`; all are listed if absent.")
    ] = None,
    *,
    svg: Annotated[
        Path | None, typer.Option(help="Write the picture of the sweep into this file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as in a pipe; else a picture.")
    ] = False,
) -> None:
    """List the patch sweeps of a run, or show one of them.

    Example: aegir sweeps runs/demo-1 latest --svg sweep.svg
    """
    found = _found(open_run(run), sweep)
    if svg is not None and found:
        _write_svg(found[-1], svg)
    elif as_json or not sys.stdout.isatty():
        with quiet_pipe():
            _print_json(found, whole=sweep is not None)
    elif sweep is not None:
        print_picture(found[0].grids, Console())
    else:
        Console().print(_table([_row(reader) for reader in found]))


def _found(run: RunDirectory, sweep: str | None) -> list[SweepReader]:
    readers = [SweepReader(run, file) for file in run.sweeps()]
    if sweep is not None:
        readers = [reader for reader in readers if reader.sweep == sweep.zfill(5)] or (
            readers[-1:] if sweep == _LATEST else []
        )
    if not readers:
        what = "which holds no sweep" if sweep in (None, _LATEST) else f"which has no `{sweep}`"
        raise RunNotFoundError(
            f"Expected a run with sweeps, got `{run.root}`, {what}",
            hint="aegir sweep makes one; aegir sweeps RUN lists them",
        )
    for reader in readers:
        reader.poll()
    return readers


def _print_json(found: list[SweepReader], *, whole: bool) -> None:
    for reader in found:
        if whole:
            grids = reader.grids
            events = [grids.started, *grids.cells.values(), grids.ended]
            lines = [codec.encode(event) for event in events if event]
        else:
            lines = [codec.encode(_row(reader))]
        sys.stdout.write(b"".join(lines).decode())


def _row(reader: SweepReader) -> SweepRow:
    grids, started = reader.grids, reader.grids.started
    return SweepRow(
        sweep=reader.sweep,
        status=reader.status(),
        model=started.model if started else None,
        metric=started.metric if started else None,
        answer=started.answer if started else None,
        foil=started.foil if started else None,
        hooks=started.hooks if started else (),
        cells=len(grids.cells),
        of=started.cells if started else 0,
        best=grids.extremes(),
    )


def _table(rows: list[SweepRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("sweep", "status", "model", "metric", "answer"):
        table.add_column(name, overflow="fold")
    table.add_column("cells", justify="right", no_wrap=True)
    table.add_column("most")
    for row in rows:
        answer = f"{row.answer}{f' / {row.foil}' if row.foil is not None else ''}"
        table.add_row(
            row.sweep,
            row.status,
            row.model,
            row.metric,
            answer,
            f"{row.cells:,}/{row.of:,}",
            "\n".join(
                f"{best.hook} layer {best.layer}, position {best.position}: {best.value:.2f}"
                for best in row.best
            ),
        )
    return table


def _write_svg(reader: SweepReader, path: Path) -> None:
    require("jinja2", "starlette", "uvicorn", "bokeh", extra="web")
    from aegir_adapters.web.heat_map import heat_maps  # noqa: PLC0415 - needs the extra

    path.write_text(heat_maps(reader.grids))
    typer.echo(f"Wrote {path}")
