"""`aegir repair`: a clean copy of a damaged run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegir_adapters.cli.arguments import DEFAULT_RUN, Run, open_log
from aegir_stream.repair import repair as repair_run

__all__ = ["repair"]


def repair(
    run: Run = DEFAULT_RUN,
    *,
    to: Annotated[
        Path, typer.Option(help="Directory of the copy; it must not exist, or be empty.")
    ],
) -> None:
    """Write a clean copy of a run; the run itself is left as it is.

    Copies what agrees with its checksums, and writes a gap wherever something had to be left out.
    Model weights are not copied. Nobody should be writing the run meanwhile.

    Example: aegir repair runs/demo-1 --to runs/demo-1-clean
    """
    repaired = repair_run(open_log(run), to=to)
    typer.echo(
        f"{repaired.files} files with {repaired.records} records copied to {to}, "
        f"{repaired.mended} of them mended"
    )
