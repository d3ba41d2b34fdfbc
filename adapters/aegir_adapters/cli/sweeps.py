"""`aegir sweeps`: the patch sweeps that a run holds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
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
from aegir_adapters.cli.sweep_heading import legible
from aegir_stream import codec
from aegir_stream.errors import OptionError, RunNotFoundError
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import SweepExtreme, SweepMethod
from aegir_stream.sweep_reader import SweepReader, SweepStatus
from aegir_stream.views import SweepGrids

__all__ = ["SweepRow", "sweeps"]

_LATEST = "latest"


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, as it is listed.

    Attributes:
        sweep: its name.
        status: whether it goes on, or how it ended.
        model: what was patched.
        metric: what a cell holds.
        answer: what was measured; of several pairs, in the first one.
        foil: what it was compared with.
        hooks: where was patched.
        cells: how many cells there are, of all pairs.
        of: how many there will be.
        best: for each hook the cell that brings back the most, of pairs in their mean.
        method: whether cells were computed, or estimated.
        pairs: how many pairs of prompts there are.
        latent: the latent that was patched, as LAYER:INDEX.
        columns: names of the columns, if they are groups of positions.
        step: of the checkpoint, or of the policy in training.
        study: what it is one of, if the policy was swept again and again.
    """

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
    method: SweepMethod | None = None
    pairs: int = 1
    latent: str | None = None
    columns: tuple[str, ...] = ()
    step: int | None = None
    study: str | None = None

    def told(self, best: SweepExtreme) -> str:
        """Return a best cell in words."""
        named = 0 <= best.position < len(self.columns)
        place = self.columns[best.position] if named else f"position {best.position}"
        return f"{best.hook} layer {best.layer}, {place}: {best.value:.2f}"


def sweeps(
    run: Run = DEFAULT_RUN,
    sweep: Annotated[
        str | None, typer.Argument(help="Number of one, or `latest`; all are listed if absent.")
    ] = None,
    *,
    pair: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of a sweep of several pairs of prompts, one of them; else their mean."
        ),
    ] = None,
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
    found = _found(open_run(run), sweep if pair is None else sweep or _LATEST)
    shown = found[-1].grids if pair is None else _one_pair(found[-1], pair)
    if svg is not None:
        _write_svg(shown, svg)
    elif as_json or not sys.stdout.isatty():
        with quiet_pipe():
            if sweep is None and pair is None:
                _print(map(_row, found))
            else:
                _print([shown.started, *shown.cells.values(), shown.ended])
    elif sweep is not None or pair is not None:
        print_picture(found[-1].grids, Console(), pair=pair)
    else:
        Console().print(_table([_row(reader) for reader in found]))


def _one_pair(reader: SweepReader, pair: int) -> SweepGrids:
    count = reader.grids.pairs
    if pair >= count:
        raise OptionError(
            f"Expected `pair` within 0..{count - 1}, got {pair}: sweep {reader.sweep} has "
            f"{f'{count} pairs' if count > 1 else 'one pair'} of prompts",
            hint="Leave out --pair for their mean",
        )
    return reader.grids.pair(pair)


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


def _print(lines: Iterable[msgspec.Struct | None]) -> None:
    sys.stdout.write(b"".join(codec.encode(line) for line in lines if line).decode())


def _row(reader: SweepReader) -> SweepRow:
    grids, started = reader.grids, reader.grids.started
    latent = started.latent if started else None
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
        method=started.method if started else None,
        pairs=grids.pairs,
        latent=f"{latent.layer}:{latent.index}" if latent else None,
        columns=started.columns if started else (),
        step=started.step if started else None,
        study=started.study if started else None,
    )


def _table(rows: list[SweepRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("sweep", "status", "model", "what", "answer"):
        table.add_column(name, overflow="fold")
    table.add_column("cells", justify="right", no_wrap=True)
    table.add_column("most")
    for row in rows:
        answer = f"{row.answer}{f' / {row.foil}' if row.foil is not None else ''}"
        table.add_row(
            row.sweep,
            row.status,
            row.model,
            "\n".join(_what(row)),
            answer,
            f"{row.cells:,}/{row.of:,}",
            "\n".join(map(row.told, row.best)),
        )
    return table


def _what(row: SweepRow) -> Iterator[str]:
    yield row.metric or ""
    if row.study is not None:
        yield f"study {legible(row.study)}"
    if row.method == "attribution":
        yield "estimated"
    if row.latent is not None:
        yield f"latent {row.latent}"
    if row.pairs > 1:
        yield f"mean of {row.pairs} pairs"


def _write_svg(grids: SweepGrids, path: Path) -> None:
    require("jinja2", "starlette", "uvicorn", "bokeh", extra="web")
    from aegir_adapters.web.heat_map import heat_maps  # noqa: PLC0415 - needs the extra

    path.write_text(heat_maps(grids))
    typer.echo(f"Wrote {path}")
