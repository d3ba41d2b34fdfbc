"""The command line: `aegir`."""

from __future__ import annotations

from aegir_adapters.cli.app import app, main

__all__ = ["app", "main"]
