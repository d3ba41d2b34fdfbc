"""`python -m aegir_adapters.web.dev`: the process that `Supervisor` starts."""

from __future__ import annotations

import argparse
import socket
import sys

from aegir_adapters.web.dev.app import create_ui
from aegir_adapters.web.security import ANY, LOOPBACK
from aegir_adapters.web.server import WebServer


def main() -> None:
    """Serve on a port that was taken already, until standard input ends."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--any-host", action="store_true")
    options = parser.parse_args()
    app = create_ui(options.gateway, allowed_hosts=(ANY,) if options.any_host else LOOPBACK)
    with WebServer(app, socket.socket(fileno=options.fd)):
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
