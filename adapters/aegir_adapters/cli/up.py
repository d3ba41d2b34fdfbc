"""`aegir up`: everything that one checkout of a host should run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aegir_adapters.cli.arguments import DEFAULT_RUN
from aegir_adapters.cli.extras import require
from aegir_adapters.worktree import NotACheckoutError, require_free, role_of
from aegir_stream.config import DEFAULT_PORT, OUTPUT_DIR_VARIABLE, PORT_VARIABLE

__all__ = ["up"]


def up(
    *,
    output_dir: Annotated[
        Path, typer.Option(envvar=OUTPUT_DIR_VARIABLE, help="A run, or a root of many.")
    ] = DEFAULT_RUN,
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar=PORT_VARIABLE, help="Port of the gateway.")
    ] = DEFAULT_PORT,
    ui_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the pages; 0 for a free one.")
    ] = 0,
) -> None:
    """Start the gateway and the pages of this checkout; in a secondary one, only say what to do.

    Example: aegir up --output-dir runs
    """
    if _is_secondary():
        typer.echo("This is a secondary checkout: gateway and services run in the primary.")
        typer.echo("Watch from here with: aegir ui (or just ui-dev)")
        return
    require_free(port, variable=PORT_VARIABLE)
    require("starlette", "uvicorn", "bokeh", "jinja2", "httpx", "watchfiles", extra="ui")
    from aegir_adapters import web  # noqa: PLC0415 - needs the extra
    from aegir_adapters.web import dev  # noqa: PLC0415 - likewise

    with web.serve(web.create_app(output_dir), port=port) as gateway:
        sources = dev.sources_of(None, directory=Path.cwd())
        pages = dev.Supervisor(gateway.address, sources, port=ui_port)
        typer.echo(f"{output_dir} is at {gateway.address}")
        typer.echo(f"The pages of this checkout are at {pages.address} (Ctrl-C ends both)")
        pages.run(lambda line: typer.echo(f"aegir up: {line}", err=True))


def _is_secondary() -> bool:
    """Tell whether another checkout should run all this; outside of any there is none."""
    try:
        return role_of(Path.cwd(), os.environ) == "secondary"
    except NotACheckoutError:
        return False
