"""`aegir guard`: run any command that needs a port or a directory for itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aegir_adapters.worktree import (
    directory_setting,
    guard_directory,
    guard_port,
    port_setting,
    require_free,
)
from aegir_stream.config import OUTPUT_DIR_VARIABLE, PORT_VARIABLE
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import Lease

__all__ = ["guard"]

NOT_FOUND = 127


def guard(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, behind --.")],
    *,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="The directory that the primary checkout writes to."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The port that the primary checkout listens on."),
    ] = None,
    dir_variable: Annotated[
        str, typer.Option(help="Variable that names another directory.")
    ] = OUTPUT_DIR_VARIABLE,
    port_variable: Annotated[
        str, typer.Option(help="Variable that names another port.")
    ] = PORT_VARIABLE,
) -> None:
    """Run a command that fights over no port and no directory, or exit with 2.

    In a primary checkout both have to be free. A secondary one is refused,
    unless ALLOW_SECONDARY=1 is set and the variables name a port and a
    directory that are not the primary's. The command finds what is in force in
    the variables, and holds the directory's lease until it ends.

    Example: aegir guard --port 3000 --port-variable PORT --dir runs/a -- npm run dev
    """
    environment = dict(os.environ)
    if port is not None:
        _claim_port(port, port_variable, environment)
    if directory is not None:
        _claim_directory(directory, dir_variable, environment)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - to run it is what we are for
    except FileNotFoundError:
        typer.echo(f"aegir: There is no command `{command[0]}`", err=True)
        raise typer.Exit(NOT_FOUND) from None


def _claim_port(port: int, variable: str, environment: dict[str, str]) -> None:
    setting = port_setting(environment, default=port, variable=variable)
    guard_port(setting.value, environment=environment, setting=setting)
    require_free(setting.value, variable=variable)
    environment[variable] = str(setting.value)


def _claim_directory(directory: Path, variable: str, environment: dict[str, str]) -> None:
    setting = directory_setting(environment, default=directory, variable=variable)
    guard_directory(setting.value, environment=environment, setting=setting)
    lease = Lease.take(RunDirectory.at(setting.value), variable=variable)
    if lease.fd is not None:
        # The program that takes our place holds it, and what it starts; the kernel ends it.
        os.set_inheritable(lease.fd, True)
    environment[variable] = str(setting.value.absolute())
