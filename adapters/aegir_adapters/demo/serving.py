"""The demo's page, served beside the training run."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

from aegir_adapters.web import WebServer, serve
from aegir_stream.errors import PortInUseError

if TYPE_CHECKING:
    from starlette.applications import Starlette

PORTS_TRIED = 20


def serve_near(app: Starlette, *, port: int) -> WebServer:
    """Take `port` of the loopback interface for `app`, or the next one that is free.

    Raises:
        PortInUseError: the port and those after it are taken.
    """
    for candidate in range(port, port + PORTS_TRIED):
        try:
            return serve(app, port=candidate)
        except PortInUseError:
            continue
    raise PortInUseError(
        f"Ports {port} to {port + PORTS_TRIED - 1} are all in use",
        hint="Name another one with --port, or serve no page with --headless",
    )


def wait_for_interrupt() -> None:
    """Return when the user presses Ctrl-C."""
    try:
        Event().wait()
    except KeyboardInterrupt:
        return
