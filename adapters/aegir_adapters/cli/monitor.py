"""`aegir monitor`: how runs are doing, in a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from aegir_adapters.cli.arguments import DEFAULT_RUN, open_run
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.monitor import Fleet, glyphs_for, ordered, report, show
from aegir_stream.config import OUTPUT_DIR_VARIABLE

__all__ = ["monitor"]

_SIGNALLED = 128
_BY_NAME = "name"


def monitor(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RUN]...",
            envvar=OUTPUT_DIR_VARIABLE,
            help="Run directories, or directories that hold some.",
        ),
    ] = [DEFAULT_RUN],  # noqa: B006 - typer reads it, nobody changes it
    *,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one plain line for each run, and end.")
    ] = False,
) -> None:
    """Show how runs are doing: how far, how well, how fast, and whether they go on.

    Redrawn in place until q is pressed; s sorts by activity, name, best or iteration. One plain
    line for each run where the output is no terminal.

    Example: aegir monitor runs
    """
    fleet = Fleet([open_run(path).root for path in runs])
    console = Console()
    if once or not (sys.stdout.isatty() and console.is_interactive):
        _print_report(fleet)
    elif ended := show(fleet, console, interval_s=interval):
        raise typer.Exit(_SIGNALLED + ended)


def _print_report(fleet: Fleet) -> None:
    rows = ordered(fleet.look(), _BY_NAME)
    for note in fleet.notes or ([] if rows else ["No run is there"]):
        sys.stderr.write(f"{note}\n")
    with quiet_pipe():
        for line in report(rows, glyphs=glyphs_for(sys.stdout.encoding)):
            sys.stdout.write(line + "\n")
