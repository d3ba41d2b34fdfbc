"""Rows for programs and for people: JSON lines in a pipe, a table on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegir_adapters.cli.pipe import quiet_pipe
from aegir_stream import codec

__all__ = ["LABEL", "Column", "Report", "show"]

Column: TypeAlias = tuple[str, Callable[[Any], str]]
"""A heading, and the cell of a row."""

LABEL = "label"
"""Heading of the column of free text, which is wrapped where there is no room."""

_LABEL_WIDTH = 24
"""Characters of it that stand in one line, at least."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a command found.

    Attributes:
        rows: one object a line, for programs.
        columns: what a person sees of them.
        remarks: what is to be said about them.
        spare: headings that a narrow terminal does without, the first before the others.
    """

    rows: Sequence[msgspec.Struct]
    columns: Sequence[Column]
    remarks: Sequence[str] = ()
    spare: Sequence[str] = ()


def show(report: Report, *, is_table: bool) -> None:
    """Print a report; remarks go to stderr."""
    for remark in report.remarks:
        typer.echo(remark, err=True)
    if is_table:
        console = Console()
        console.print(_table(report, console.width))
        return
    with quiet_pipe():
        for row in report.rows:
            sys.stdout.write(codec.encode(row).decode())


def _table(report: Report, width: int) -> Table:
    cells = [(title, [text(row) for row in report.rows]) for title, text in report.columns]
    for spare in report.spare:
        if sum(_needed(title, column) for title, column in cells) > width:
            cells = [(title, column) for title, column in cells if title != spare]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title, _ in cells:
        is_text = title == LABEL
        table.add_column(title, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in zip(*(column for _, column in cells), strict=True):
        table.add_row(*row)
    return table


def _needed(title: str, column: Sequence[str]) -> int:
    """Return the width of a column, with the gap behind it; long labels are wrapped."""
    longest = max(map(len, [title, *column]))
    return 2 + (min(longest, _LABEL_WIDTH) if title == LABEL else longest)
