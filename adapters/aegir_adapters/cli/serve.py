"""`aegir serve`: a run or all runs under a root, in a browser and as streams."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aegir_adapters.cli.arguments import DEFAULT_RUN
from aegir_adapters.cli.extras import require
from aegir_adapters.worktree import guard_port, require_free
from aegir_stream.config import DEFAULT_PORT, OUTPUT_DIR_VARIABLE, PORT_VARIABLE

__all__ = ["serve"]


def serve(
    *,
    run: Annotated[
        Path | None,
        typer.Argument(help="A run directory, or a root of many; the same as --output-dir."),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(envvar=OUTPUT_DIR_VARIABLE, help="The directory; it may come later.")
    ] = DEFAULT_RUN,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            envvar=PORT_VARIABLE,
            help="Port to listen on; 0 for a free one.",
        ),
    ] = DEFAULT_PORT,
    allow_public: Annotated[
        bool,
        typer.Option(
            "--allow-public", help="Listen where other machines can reach it; no passwords."
        ),
    ] = False,
    guarded: Annotated[
        bool,
        typer.Option(
            "--guarded", help="In a secondary checkout, refuse the port that is the primary's."
        ),
    ] = False,
) -> None:
    """Serve a run, or all runs under a root: live viewer, charts, record stream.

    Example: aegir serve runs/demo-1 --port 8091, or all of them: aegir serve runs

    Then: curl -N http://127.0.0.1:8091/api/p5/sae/stream
    """
    if guarded:
        guard_port(port, environment=os.environ)
    require_free(port, variable=PORT_VARIABLE, host=host)
    require("starlette", "uvicorn", "bokeh", "jinja2", extra="web")
    from aegir_adapters import web  # noqa: PLC0415 - needs the extra
    from aegir_adapters.cli.sweep_processes import SweepProcesses  # noqa: PLC0415 - likewise

    directory = run or output_dir
    with SweepProcesses(may_start=not allow_public) as starter:
        hosts = ("*",) if allow_public else web.LOOPBACK
        app = web.create_app(directory, allowed_hosts=hosts, sweep_starter=starter)
        server = web.serve(app, host=host, port=port, allow_public=allow_public)
        typer.echo(f"{directory} is at {server.address} (Ctrl-C ends it)")
        server.run()
