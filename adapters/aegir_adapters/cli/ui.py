"""`aegir ui`: the pages of a checkout, with the data of a gateway, for those who work on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegir_adapters.cli.extras import require
from aegir_adapters.worktree import require_free
from aegir_stream.config import DEFAULT_GATEWAY_URL, GATEWAY_URL_VARIABLE

__all__ = ["ui"]


def ui(
    *,
    gateway: Annotated[
        str,
        typer.Option(
            envvar=GATEWAY_URL_VARIABLE, help="Address of the gateway that all data comes from."
        ),
    ] = DEFAULT_GATEWAY_URL,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")
    ] = 0,
    checkout: Annotated[
        Path | None,
        typer.Option(
            help="Checkout that the pages come from; the one around the current directory if "
            "absent, or what is installed."
        ),
    ] = None,
    allow_public: Annotated[
        bool,
        typer.Option(
            "--allow-public", help="Listen where other machines can reach it; no passwords."
        ),
    ] = False,
) -> None:
    """Show what a gateway serves in the pages of this checkout, and reload them as they change.

    Reads no run: all data comes from the gateway, which another checkout or machine may run.

    Example: AEGIR_GATEWAY_URL=http://127.0.0.1:8091 aegir ui
    """
    require_free(port, variable="--port", host=host)
    require("starlette", "uvicorn", "bokeh", "jinja2", "httpx", "watchfiles", extra="ui")
    from aegir_adapters.web import dev  # noqa: PLC0415 - needs the extra

    sources = dev.sources_of(checkout, directory=Path.cwd())
    server = dev.Supervisor(gateway, sources, host=host, port=port, allow_public=allow_public)
    typer.echo(
        f"{server.address} shows {server.gateway} with the pages in {sources.web} (Ctrl-C ends it)"
    )
    server.run(lambda line: typer.echo(f"aegir ui: {line}", err=True))
