"""Forms that go to the gateway through the development server, on real connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from adapters.web.completing import CompletionRun, completion
from adapters.web.test_sweeps import ORDER, Starter
from aegir_adapters.web import create_app, serve
from aegir_adapters.web.dev import create_ui

pytestmark = pytest.mark.anyio

Open = Callable[..., AbstractAsyncContextManager[Any]]
FORM = {"content-type": "application/x-www-form-urlencoded"}
HTML = {"accept": "text/html"}


class Noting:
    """A gateway that notes what it is sent.

    Attributes:
        asked: method, headers and body of each request.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        methods = ["GET", "POST"]
        self.app = Starlette(
            routes=[
                Route("/there", self._there, methods=methods),
                Route("/{path:path}", self._note, methods=methods),
            ]
        )

    async def _note(self, request: Request) -> Response:
        self.asked.append((request.method, dict(request.headers), await request.body()))
        return JSONResponse({}, 203)

    async def _there(self, request: Request) -> Response:
        return RedirectResponse(f"{request.base_url}sweeps/00001?x=1", 303)


@pytest.fixture
def noting() -> Noting:
    """A gateway that notes what it is sent."""
    return Noting()


@pytest.fixture
def through(connect: Open) -> Open:
    """Serve an application as a gateway, and connect to a development server in front of it."""

    @asynccontextmanager
    async def connected(gateway: Starlette, **options: Any) -> AsyncIterator[Any]:
        with serve(gateway, port=0) as server:
            async with connect(create_ui(server.address, **options)) as client:
                client.gateway = server
                client.own = str(client.http.base_url).rstrip("/")
                yield client

    return connected


@pytest.fixture
def starter() -> Starter:
    """A starter."""
    return Starter()


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[CompletionRun]:
    """A run with a completion and a checkpoint."""
    run = CompletionRun(tmp_path / "run")
    await run.record(completion(3))
    await run.save(4)
    yield run
    await run.finish()


async def test_a_form_goes_through(run: CompletionRun, starter: Starter, through: Open) -> None:
    """A page of ours starts, and cancels, what a page of the gateway would."""
    app = create_app(run.directory.cfg, sweep_starter=starter)
    async with through(app) as client:
        own = FORM | {"origin": client.own, "sec-fetch-site": "same-origin"}
        body = urlencode(ORDER | {"prompt": "41 ü &="}).encode()
        answer = await client.http.post("/sweeps", content=body, headers=own)
        assert (answer.status_code, answer.headers["location"]) == (303, "sweeps")
        stopped = await client.http.post("/sweeps/stop", headers=own)
        assert (stopped.status_code, stopped.headers["location"]) == (303, "../sweeps")
        starter.made = None
        click = urlencode({"ablate": "1:2:11"}).encode()
        path = "/setup/run/run/0/sae/completions/3-0"
        answer = await client.http.post(path, content=click, headers=own)
        assert (answer.status_code, answer.headers["location"]) == (303, "../sweeps#making")
    assert [order.prompt for _, order in starter.orders] == ["41 ü &=", ""]
    assert starter.orders[1][1].latent == "2:11"
    assert starter.stopped == [run.directory.root]


async def test_a_form_that_is_wrong_is_drawn_here(
    run: CompletionRun, starter: Starter, through: Open, tmp_path: Path
) -> None:
    """With the templates of the checkout, and not loaded again by itself: that would send it."""
    app = create_app(run.directory.cfg, sweep_starter=starter)
    async with through(app) as client:
        body = urlencode(ORDER | {"answer": ""}).encode()
        answer = await client.http.post("/sweeps", content=body, headers=FORM | HTML)
        shown = await client.http.get("/sweeps", headers=HTML)
    assert answer.status_code == 422
    assert 'id="trouble-answer"' in answer.text
    assert "reload.js" not in answer.text
    assert "reload.js" in shown.text
    assert starter.orders == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example"},
    ],
)
async def test_pages_of_others_send_nothing_through_us(
    noting: Noting, through: Open, headers: dict[str, str]
) -> None:
    """The gateway would take it for a program's, so it is refused here and never asked."""
    async with through(noting.app) as client:
        answer = await client.http.post("/sweeps", content=b"a=1", headers=FORM | headers)
    assert answer.status_code == 403
    assert noting.asked == []


async def test_a_page_of_the_gateway_is_another_page(noting: Noting, through: Open) -> None:
    """Its origin is not ours, though what it shows is the same."""
    async with through(noting.app) as client:
        headers = FORM | {"origin": client.gateway.address}
        assert (await client.http.post("/x", headers=headers)).status_code == 403
    assert noting.asked == []


async def test_others_than_this_machines_users_send_nothing(noting: Noting, through: Open) -> None:
    """Who reaches a public server would start processes on behalf of who runs it."""
    for hosts in (("*",), ("localhost", "127.0.0.1", "gpu-box")):
        async with through(noting.app, allowed_hosts=hosts) as client:
            answer = await client.http.post("/sweeps", content=b"a=1", headers=FORM)
            assert answer.status_code == 403
            assert "no passwords" in answer.json()["error"]
    assert noting.asked == []


async def test_the_gateway_gets_the_form_as_it_is(noting: Noting, through: Open) -> None:
    """Its bytes and their type, as from a program: no origin, no word of the browser's page."""
    body = b"prompt=%C3%BC+&\xff=\x00"
    async with through(noting.app) as client:
        headers = FORM | {
            "origin": client.own,
            "sec-fetch-site": "same-origin",
            "cookie": "session=another server's",
            "referer": f"{client.own}/sweeps",
        }
        answer = await client.http.post("/sweeps?x=1", content=body, headers=headers)
    assert answer.status_code == 203
    ((method, told, sent),) = noting.asked
    assert (method, sent) == ("POST", body)
    assert told["content-type"] == FORM["content-type"]
    assert told["content-length"] == str(len(body))
    assert told.keys().isdisjoint({"origin", "cookie", "referer", "sec-fetch-site"})


async def test_a_form_that_is_too_long_ends_here(noting: Noting, through: Open) -> None:
    """The gateway never hears of it."""
    async with through(noting.app) as client:
        answer = await client.http.post("/sweeps", content=b"x" * 300_000, headers=FORM)
    assert answer.status_code == 413
    assert "262144 bytes" in answer.json()["error"]
    assert noting.asked == []


async def test_where_a_form_leads_is_here(noting: Noting, through: Open) -> None:
    """A redirect to the gateway leads to the same path of ours."""
    async with through(noting.app) as client:
        answer = await client.http.post("/there", headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sweeps/00001?x=1")


async def test_a_form_is_sent_once(connect: Open) -> None:
    """A gateway that leaves without an answer may have done what was asked: nobody asks again."""
    taken: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        hearing = threading.Thread(target=_hang_up, args=(listening, taken))
        hearing.start()
        async with connect(create_ui(f"http://127.0.0.1:{listening.getsockname()[1]}")) as client:
            body = {"content": b"a=1", "headers": FORM}
            told = await client.http.post("/sweeps", **body)
            hearing.join()
            listening.settimeout(0)
            with pytest.raises(BlockingIOError):
                listening.accept()
    assert told.status_code == 502
    assert "does not answer" in told.json()["error"]
    assert len(taken) == 1
    assert taken[0].endswith(b"\r\n\r\na=1")


async def test_nobody_knows_what_became_of_a_form(connect: Open) -> None:
    """Where the gateway is away the page says to look first, and does not load again by itself."""
    async with connect(create_ui("http://127.0.0.1:9")) as client:
        told = await client.http.post("/sweeps", content=b"a=1", headers=FORM | HTML)
    assert told.status_code == 502
    assert "Look before you send it again" in told.text
    assert "reload.js" not in told.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_nothing_else_goes_through(noting: Noting, through: Open, method: str) -> None:
    """Pages read, and send forms."""
    async with through(noting.app) as client:
        assert (await client.http.request(method, "/x")).status_code == 405
    assert noting.asked == []


@pytest.mark.parametrize("path", ["/../x", "/%2e%2e/x"])
async def test_no_form_leads_out_of_the_gateway(noting: Noting, through: Open, path: str) -> None:
    """As with what is read."""
    async with through(noting.app) as client:
        port = client.http.base_url.port
        async with await anyio.connect_tcp("127.0.0.1", port) as raw:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
            await raw.send(head.encode() + b"a=1")
            answer = (await raw.receive()).decode()
    assert answer.startswith("HTTP/1.1 400"), answer
    assert noting.asked == []


def _hang_up(listening: socket.socket, taken: list[bytes]) -> None:
    """Take one request, and leave without an answer."""
    connection, _ = listening.accept()
    with connection:
        data = b""
        while not data.endswith(b"a=1"):
            data += connection.recv(65536)
        taken.append(data)
