from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn

from aegir_adapters.web import PublicAddressError, create_app, serve
from aegir_adapters.web.stopping import server_is_stopping
from aegir_stream.errors import PortInUseError

MOUNTED = """
import sys, uvicorn
from fastapi import FastAPI
from aegir_adapters.web import create_app

app = FastAPI()
app.mount("/run", create_app(sys.argv[1]))
uvicorn.run(app, fd=int(sys.argv[2]), log_level="error")
"""


def test_a_port_in_use_is_named_with_the_remedy(tmp_path: Path) -> None:
    """A second server on a port is refused before it does anything, and says what to change."""
    first = serve(create_app(tmp_path), port=0)
    with first, pytest.raises(PortInUseError, match=f"Port {first.port} ") as caught:
        serve(create_app(tmp_path), port=first.port)

    assert "--port" in str(caught.value)
    assert "AEGIR_GATEWAY_PORT" in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])  # noqa: S104
def test_a_public_address_has_to_be_asked_for(tmp_path: Path, host: str) -> None:
    """Listening where others can reach it is refused without a word to that effect."""
    with pytest.raises(PublicAddressError, match="allow_public"):
        serve(create_app(tmp_path), host=host, port=0)


def test_a_public_address_can_be_asked_for(tmp_path: Path) -> None:
    """Said in words, it is served, and the address shown is one that works here."""
    app = create_app(tmp_path)
    with serve(app, host="0.0.0.0", port=0, allow_public=True) as server:  # noqa: S104
        answer = httpx.get(f"{server.address}/api/p5/runs")

    assert answer.status_code == 200
    assert server.address == f"http://localhost:{server.port}"


def test_an_application_can_be_served_again(tmp_path: Path) -> None:
    """Stopping one server leaves nothing behind that stops the next."""
    app = create_app(tmp_path)
    for _ in range(2):
        with serve(app, port=0) as server, httpx.stream("GET", f"{server.address}/live") as answer:
            assert answer.status_code == 200
            assert not app.state.stopping.stopped


@pytest.mark.anyio
async def test_open_streams_do_not_delay_the_end(run: Any) -> None:
    """A server with open streams ends in under a second, and its clients see a proper end."""
    await run.step(1)
    server = serve(create_app(run.directory.cfg), port=0)
    server.start()
    async with (
        httpx.AsyncClient(base_url=server.address) as http,
        http.stream("GET", "/api/p5/sae/stream") as records,
        http.stream("GET", "/api/view/overview/stream") as marks,
    ):
        bodies = [answer.aiter_raw() for answer in (records, marks)]
        for body in bodies:
            await anext(body)
        begun = time.monotonic()
        await anyio.to_thread.run_sync(server.stop)
        took_s = time.monotonic() - begun
        for body in bodies:
            async for _ in body:
                pass

    assert took_s < 1


@pytest.mark.anyio
async def test_open_streams_of_a_mounted_application_end_with_their_server(run: Any) -> None:
    """In a server that knows nothing of us, SIGTERM ends open streams in under a second."""
    await run.step(1)
    port = serve(create_app(run.directory.cfg), port=0)
    fd = port._socket.fileno()
    arguments = [sys.executable, "-c", MOUNTED, str(run.directory.root), str(fd)]
    process = subprocess.Popen(arguments, pass_fds=[fd])  # noqa: ASYNC220 - starts at once
    try:
        async with (
            httpx.AsyncClient(base_url=port.address, timeout=30) as http,
            http.stream("GET", "/run/api/p5/sae/stream") as answer,
        ):
            body = answer.aiter_raw()
            await anext(body)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(lambda: process.wait(10))
            took_s = time.monotonic() - begun
            async for _ in body:
                pass
    finally:
        process.kill()
        process.wait()
        port.stop()

    assert took_s < 1


def test_a_signal_to_uvicorn_is_seen() -> None:
    """The signal handler of uvicorn tells that it was asked to stop."""
    server = uvicorn.Server(uvicorn.Config(lambda: None))
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        assert not server_is_stopping()
        server.should_exit = True
        assert server_is_stopping()
    finally:
        signal.signal(signal.SIGTERM, before)
