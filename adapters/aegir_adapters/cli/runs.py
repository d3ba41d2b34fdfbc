"""`aegir runs`: the runs under a directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegir_adapters.cli.arguments import DEFAULT_RUN, Run, open_run
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_stream.layout import RunDirectory
from aegir_stream.manifest import look_at_manifest
from aegir_stream.replay import replay
from aegir_stream.views import RunStateView

__all__ = ["RunRow", "runs"]


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as it is listed."""

    run: str
    run_id: str
    attempts: int
    step: int | None
    score: float | None
    best: float | None
    checkpoints: int
    records_sealed: int


def runs(
    root: Run = DEFAULT_RUN,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as in a pipe; else a table.")
    ] = False,
) -> None:
    """List the runs under a directory, or the one that it is.

    Example: aegir runs runs --json | jq .best
    """
    rows = [_row(run) for run in _find(open_run(root))]
    if not rows:
        sys.stderr.write(f"No run lies under {root}\n")
    elif as_json or not sys.stdout.isatty():
        with quiet_pipe():
            for row in rows:
                sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    else:
        Console().print(_table(rows))


def _table(rows: list[RunRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("attempts", "step", "score", "best", "checkpoints", "records"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures = (row.attempts, row.step, row.score, row.best, row.checkpoints)
        table.add_row(row.run, *map(_cell, figures), _cell(row.records_sealed))
    return table


def _find(root: RunDirectory) -> Iterator[RunDirectory]:
    """Yield the root if it is a run, else the runs up to two levels below it."""
    if _is_run(root):
        yield root
        return
    for path in sorted([*root.root.glob("*"), *root.root.glob("*/*")]):
        run = RunDirectory.at(path)
        if path.is_dir() and _is_run(run):
            yield run


def _is_run(run: RunDirectory) -> bool:
    return run.manifest_path.exists() or bool(run.lanes("sae_features") or run.lanes("progress"))


def _row(run: RunDirectory) -> RunRow:
    state = replay(run, RunStateView()).state
    manifest = look_at_manifest(run)
    checkpoints = run.checkpoints()
    return RunRow(
        run=str(run.root),
        run_id=str(manifest.get("run_id", "")),
        attempts=len(manifest.get("attempts", ())),
        step=state.iteration,
        score=state.curve[-1][1] if state.curve else None,
        best=state.best,
        checkpoints=len(checkpoints),
        records_sealed=sum(map(run.snapshot_records, checkpoints)),
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
