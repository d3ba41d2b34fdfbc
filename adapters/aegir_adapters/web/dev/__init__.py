"""Work on the pages in one checkout, and show in them what the gateway of another one serves."""

from __future__ import annotations

from aegir_adapters.web.dev.app import create_ui
from aegir_adapters.web.dev.gateway import GatewayError
from aegir_adapters.web.dev.sources import Sources, sources_of
from aegir_adapters.web.dev.supervisor import Supervisor

__all__ = [
    "GatewayError",
    "Sources",
    "Supervisor",
    "create_ui",
    "sources_of",
]
