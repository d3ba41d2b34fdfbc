"""`aegir sweep-server`: patch sweeps of one model over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from aegir_adapters.cli.extras import require
from aegir_adapters.cli.sweep import Checkpoint, Model
from aegir_adapters.cli.sweep_model import LATEST, find_subject, load

__all__ = ["sweep_server"]

_PORT = 8092


def sweep_server(
    model: Model,
    *,
    checkpoint: Checkpoint = LATEST,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")
    ] = _PORT,
    allow_public: Annotated[
        bool,
        typer.Option(
            "--allow-public", help="Listen where other machines can reach it; no passwords."
        ),
    ] = False,
) -> None:
    """Serve patch sweeps of a model: POST /v1/patch_sweep, as JSON or as events.

    Example: aegir sweep-server runs/demo-1 --checkpoint 80
    """
    require("torch", "transformers", extra="patching")
    require("starlette", "uvicorn", "bokeh", "jinja2", extra="web")
    from aegir_adapters import web  # noqa: PLC0415 - needs the extra
    from aegir_adapters.patching.routes import LOOPBACK, patch_app  # noqa: PLC0415 - likewise

    # Before the model is loaded, which takes a while.
    listener = web.listen(host, port=port, allow_public=allow_public)
    subject = find_subject(model, checkpoint)
    app = patch_app(
        load(subject, device=device), allowed_hosts=("*",) if allow_public else LOOPBACK
    )
    server = web.WebServer(app, listener)
    typer.echo(f"{subject.name} is at {server.address}/v1/patch_sweep (Ctrl-C ends it)")
    server.run()
