"""`aegir sweep-server`: patch sweeps of one model over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aegir_adapters.cli.extras import require
from aegir_adapters.cli.sweep_latents import read_saes, sae_name
from aegir_adapters.cli.sweep_model import LATEST, Subject, find_subject, load
from aegir_adapters.cli.sweep_options import Checkpoint, Device, Model
from aegir_adapters.cli.sweep_saes import find_sae, recorded_layers
from aegir_stream.errors import AegirError

if TYPE_CHECKING:
    from aegir_adapters.patching.model import PatchableModel
    from aegir_adapters.sae import SparseAutoencoder

__all__ = ["sweep_server"]

_PORT = 8092


def sweep_server(
    model: Model,
    *,
    checkpoint: Checkpoint = LATEST,
    sae: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER=PATH",
            help="An SAE in the place of the run's own, or for a layer that it has none of; may "
            "be repeated.",
        ),
    ] = None,
    device: Device = "cpu",
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

    The SAEs that the run was recorded with are known to requests as layer-2 and
    so on, by their layers.

    Example: aegir sweep-server runs/demo-1 --checkpoint 80
    """
    require("torch", "transformers", extra="patching")
    require("starlette", "uvicorn", "bokeh", "jinja2", extra="web")
    from aegir_adapters import web  # noqa: PLC0415 - needs the extra
    from aegir_adapters.patching.routes import LOOPBACK, patch_app  # noqa: PLC0415 - likewise

    named = read_saes(sae or ())
    # Before the model is loaded, which takes a while.
    with web.listen(host, port=port, allow_public=allow_public) as listener:
        subject = find_subject(model, checkpoint)
        loaded = load(subject, device=device)
        saes = _saes(subject, loaded, named)
        app = patch_app(loaded, saes=saes, allowed_hosts=("*",) if allow_public else LOOPBACK)
        server = web.WebServer(app, listener)
        beside = f" with the SAEs {', '.join(saes)}" if saes else ""
        typer.echo(f"{subject.name}{beside} is at {server.address}/v1/patch_sweep (Ctrl-C ends it)")
        server.run()


def _saes(
    subject: Subject, model: PatchableModel, named: dict[int, str]
) -> dict[str, SparseAutoencoder]:
    """Return the SAEs by the names that requests use; what was named must be there."""
    found: dict[str, SparseAutoencoder] = {}
    for layer in sorted({*recorded_layers(subject), *named}):
        try:
            one = find_sae(subject, layer, model=model, path=named.get(layer))
        except AegirError as error:
            if layer in named:
                raise
            # Sweeps of whole activations need none.
            typer.secho(f"{sae_name(layer)} is not served: {error}", err=True)
            continue
        found[sae_name(layer)] = one.sae
        if one.warning is not None:
            typer.secho(f"{sae_name(layer)}: {one.warning}", err=True)
    return found
