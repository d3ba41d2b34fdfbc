"""The web server in a process of its own: python -m soak.server RUN. It says its port."""

from __future__ import annotations

import os
import sys

from aegir_adapters.web import create_app, serve

if __name__ == "__main__":
    server = serve(create_app(sys.argv[1]), port=0)
    os.write(1, b"%d\n" % server.port)
    server.run()
