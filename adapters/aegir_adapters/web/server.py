"""A web server on one port, in the foreground or beside a training run."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from aegir_adapters.web.stopping import Stopping
from aegir_stream.config import DEFAULT_PORT
from aegir_stream.errors import AegirError, PortInUseError

__all__ = ["DEFAULT_PORT", "PublicAddressError", "WebServer", "address_of", "listen", "serve"]

_FROZEN_CLIENTS_S = 1


class PublicAddressError(AegirError, PermissionError):
    """The server was asked to listen where other machines can reach it, without saying so."""


class WebServer:
    """A port, and the application behind it.

    Args:
        app: what answers.
        listener: the port, as `listen` takes it; closed when the server stops.

    Attributes:
        port: the number of the port.
        address: what to type into a browser.
    """

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        self._stopping: Stopping | None = getattr(app.state, "stopping", None)
        self._socket = listener
        self.port: int = listener.getsockname()[1]
        self.address = address_of(listener)
        self._server = _Server(
            uvicorn.Config(
                app, log_level="warning", timeout_graceful_shutdown=_FROZEN_CLIENTS_S, ws="none"
            ),
            self._stopping,
        )
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until a signal (Ctrl-C) or `stop`."""
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Serve in a thread of its own; requests are accepted when this returns."""
        self._thread = threading.Thread(target=self.run, name="aegir-web", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End open streams and wait until the server has ended. Idempotent."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        """Start serving."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop serving."""
        self.stop()


class _Server(uvicorn.Server):
    """uvicorn, telling the application that it stops before it waits for open responses."""

    def __init__(self, config: uvicorn.Config, stopping: Stopping | None) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._stopping is not None:
            self._stopping.stop()
        await super().shutdown(sockets)


def serve(
    app: Starlette,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    allow_public: bool = False,
) -> WebServer:
    """Take a port for an application; `run()` serves, a `with` block serves beside other work.

    Raises:
        PortInUseError: another process listens on the port.
        PublicAddressError: `host` is not a loopback address and `allow_public` is not set.
        OSError: the address cannot be bound for another reason.
    """
    return WebServer(app, listen(host, port=port, allow_public=allow_public))


def listen(host: str, *, port: int, allow_public: bool = False) -> socket.socket:
    """Take a port, so that a conflict shows before anything else starts; 0 for a free one.

    Raises:
        PortInUseError: another process listens on the port.
        PublicAddressError: `host` is not a loopback address and `allow_public` is not set.
        OSError: the address cannot be bound for another reason.
    """
    if not allow_public:
        _require_loopback(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Another socket may be bound to the same port until one of them listens.
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortInUseError(
            f"Port {port} of {host} is in use by another process",
            hint="Choose another one with --port or AEGIR_GATEWAY_PORT",
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return what to type into a browser."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _require_loopback(host: str) -> None:
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise PublicAddressError(
            f"Expected a loopback address such as 127.0.0.1, got `{host}`, which other machines "
            "can reach",
            hint="There are no passwords here; allow it with --allow-public (allow_public=True)",
        )
