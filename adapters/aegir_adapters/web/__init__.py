"""Watch a run in a browser, or over server-sent events: `create_app`, `serve`."""

from __future__ import annotations

from aegir_adapters.web.app import create_app
from aegir_adapters.web.response import Pace
from aegir_adapters.web.security import LOOPBACK
from aegir_adapters.web.server import (
    DEFAULT_PORT,
    PublicAddressError,
    WebServer,
    listen,
    serve,
)
from aegir_adapters.web.sweep_starting import BusyError, Starting, SweepOrder, SweepStarter

__all__ = [
    "DEFAULT_PORT",
    "LOOPBACK",
    "BusyError",
    "Pace",
    "PublicAddressError",
    "Starting",
    "SweepOrder",
    "SweepStarter",
    "WebServer",
    "create_app",
    "listen",
    "serve",
]
