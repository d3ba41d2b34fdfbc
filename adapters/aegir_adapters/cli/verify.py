"""`aegir verify`: whether the files of a run hold what was written to them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegir_adapters.cli.arguments import DEFAULT_RUN, Run, open_log
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_stream.verification import Damage, Kind, Verification
from aegir_stream.verification import verify as verify_run

__all__ = ["verify"]

DAMAGED = 1


def verify(
    run: Run = DEFAULT_RUN,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as in a pipe; else a table.")
    ] = False,
) -> None:
    """Compare every file of a run with its checksums; exit with 0 if nothing is damaged.

    Lists what is wrong with file, offset and length. Unfinished lines that a killed writer left are
    listed as `interrupted` and are no damage. A run may be checked while it is written.

    Example: aegir verify runs/demo-1
    """
    checked = verify_run(open_log(run))
    as_lines = as_json or not sys.stdout.isatty()
    found: Counter[Kind] = Counter()
    with quiet_pipe():
        if as_lines:
            _print_lines(_counted(checked, found))
        else:
            _print_table(_counted(checked, found), run)
    # Beside JSON lines the summary would be a line too many.
    typer.echo(_summary(checked, found), err=as_lines)
    if found["damaged"]:
        raise typer.Exit(DAMAGED)


def _counted(checked: Iterable[Damage], found: Counter[Kind]) -> Iterator[Damage]:
    for damage in checked:
        found[damage.kind] += 1
        yield damage


def _print_lines(damages: Iterable[Damage]) -> None:
    for damage in damages:
        sys.stdout.write(msgspec.json.encode(damage).decode() + "\n")


def _print_table(damages: Iterable[Damage], run: Path) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("offset", "bytes", "records"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for damage in damages:
        records = "-" if damage.records is None else str(damage.records)
        figures = str(damage.offset), str(damage.length), records
        name = str(Path(damage.path).relative_to(run))
        table.add_row(name, *figures, damage.kind, damage.reason)
    if table.row_count:
        Console().print(table)


def _summary(checked: Verification, found: Counter[Kind]) -> str:
    damaged, interrupted = found["damaged"], found["interrupted"]
    ranges = "1 range" if damaged == 1 else f"{damaged} ranges"
    verdict = f"{ranges} damaged" if damaged else "nothing is damaged"
    return (
        f"{checked.files} files, {checked.records} records, {checked.size_bytes} bytes checked: "
        + verdict
        + (f", {interrupted} interrupted" if interrupted else "")
    )
