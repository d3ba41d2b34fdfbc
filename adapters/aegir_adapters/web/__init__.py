"""Watch a run in a browser, or over server-sent events: `create_app`, `serve`."""

from __future__ import annotations

from aegir_adapters.web.app import create_app
from aegir_adapters.web.response import Pace
from aegir_adapters.web.server import DEFAULT_PORT, PublicAddressError, WebServer, serve

__all__ = ["DEFAULT_PORT", "Pace", "PublicAddressError", "WebServer", "create_app", "serve"]
