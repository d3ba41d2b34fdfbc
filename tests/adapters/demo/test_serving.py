from __future__ import annotations

import socket
from http import HTTPStatus

import httpx
import pytest
from starlette.applications import Starlette

from aegir_adapters.demo import serving
from aegir_adapters.demo.serving import serve_near
from aegir_stream.errors import PortInUseError


def test_a_taken_port_is_passed_over() -> None:
    """Where another process listens, the page takes a later port and answers there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve_near(Starlette(), port=port) as server:
            assert port < server.port < port + serving.PORTS_TRIED
            assert httpx.get(server.address).status_code == HTTPStatus.NOT_FOUND


def test_no_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all ports tried are taken, the error names them and the remedy."""
    monkeypatch.setattr(serving, "PORTS_TRIED", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"{port}.*--port"):
            serve_near(Starlette(), port=port)
