"""What goes through the development server, both ways, on real connections."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from aegir_adapters.web import create_app, serve
from aegir_adapters.web.dev import create_ui
from aegir_adapters.web.dev.gateway import Gateway, headers_of
from aegir_adapters.web.dev.passing import Passing
from aegir_adapters.web.response import EventStream, Pace
from aegir_adapters.web.stopping import Stopping
from aegir_stream.errors import OptionError

pytestmark = pytest.mark.anyio

Open = Callable[..., AbstractAsyncContextManager[Any]]


class FakeGateway:
    """Says what it was asked, and breaks what it is told to break.

    Attributes:
        left: set when the reader of the endless stream has left.
    """

    def __init__(self) -> None:
        self.left = threading.Event()
        self.app = Starlette(
            routes=[
                Route("/stream", self._endless),
                Route("/cut", _Cut(b"text/event-stream")),
                Route("/cut.json", _Cut(b"application/json")),
                Route("/old", lambda _: HTMLResponse("<p>finished")),
                Route("/odd", _odd_page),
                Route("/elsewhere", lambda _: RedirectResponse("https://other.example/x")),
                Route("/{path:path}", _echo),
            ]
        )

    async def _endless(self, _: Request) -> Response:
        stopping = Stopping(lambda: False)
        return EventStream(self._events(), stopping=stopping, pace=Pace())

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: first\n\n"
            await anyio.sleep_forever()
        finally:
            self.left.set()


class _Cut:
    """Begins an answer and leaves in the middle of it (ASGI)."""

    def __init__(self, media_type: bytes) -> None:
        self.headers = [(b"content-type", media_type)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})


def _echo(request: Request) -> Response:
    headers = {"connection": "x-hop", "x-hop": "1", "x-kept": "1", "keep-alive": "timeout=5"}
    asked = request.scope["raw_path"] + b"?" + request.scope["query_string"]
    url = str(request.base_url).rstrip("/") + asked.decode().removesuffix("?")
    body = {"url": url, "headers": dict(request.headers)}
    return JSONResponse(body, 203, headers=headers)


def _odd_page(_: Request) -> Response:
    return Response(b'{"context": {}}', media_type="application/vnd.aegir.page+json")


@pytest.fixture
def fake() -> FakeGateway:
    """A gateway that shows what reaches it."""
    return FakeGateway()


@pytest.fixture
def through(connect: Open) -> Open:
    """Serve an application as a gateway, and connect to a development server in front of it."""

    @asynccontextmanager
    async def connected(gateway: Starlette, *, below: str = "") -> AsyncIterator[Any]:
        with serve(gateway, port=0) as server:
            async with connect(create_ui(server.address + below)) as client:
                client.gateway = server
                yield client

    return connected


# -- data ------------------------------------------------------------------------------------------


async def test_the_api_goes_through_as_it_is(run: Any, through: Open) -> None:
    """The same status, type and bytes as from the gateway itself."""
    await run.step(1)
    await run.save(1)
    async with through(create_app(run.directory.cfg)) as client:
        for path in ("/api/p5/runs", "/setup/run/run/0/live.json", "/nothing", "/setup/x/run/9"):
            there = await client.http.get(client.gateway.address + path)
            here = await client.http.get(path)

            assert (here.status_code, here.content) == (there.status_code, there.content)
            assert dict(here.headers) | {"date": ""} == dict(there.headers) | {"date": ""}


async def test_records_go_through_as_they_are_written(run: Any, through: Open) -> None:
    """Each event arrives while the stream stays open, with the gateway's ids and headers."""
    await run.step(1)
    async with (
        through(create_app(run.directory.cfg)) as client,
        client.open("/api/p5/sae/stream?from=start") as stream,
    ):
        records = await stream.records(6)
        await run.step(2)
        records += await stream.records(6)

    assert [record.data for record in records] == run.lines
    assert all(record.cursor for record in records)
    assert stream.response.headers["x-accel-buffering"] == "no"
    assert stream.response.headers["cache-control"] == "no-store, no-transform"


async def test_a_reader_goes_on_where_it_was(run: Any, through: Open) -> None:
    """`Last-Event-ID` reaches the gateway, so a reader that comes back gets what it lacks."""
    await run.step(1)
    async with through(create_app(run.directory.cfg)) as client:
        async with client.open("/api/p5/sae/stream?from=start") as stream:
            first = await stream.records(4)
        async with client.open(last_event_id=first[-1].cursor) as stream:
            rest = await stream.records(2)

    assert [record.data for record in first + rest] == run.lines


async def test_a_finished_stream_says_so(run: Any, through: Open) -> None:
    """204 tells a browser not to come back, here as there."""
    await run.step(1)
    await run.finish()
    async with through(create_app(run.directory.cfg)) as client:
        answer = await client.http.get("/api/p5/sae/stream?from=now")

    assert answer.status_code == 204


async def test_asking_for_the_head_goes_through(run: Any, through: Open) -> None:
    """HEAD gets the headers of a page, of data and of a stream, and leaves nothing open."""
    async with through(create_app(run.directory.cfg)) as client:
        for path in ("/", "/api/p5/runs", "/api/p5/sae/stream"):
            answer = await client.http.head(path)

            assert (answer.status_code, answer.content) == (200, b"")


async def test_a_client_that_leaves_ends_what_the_gateway_does(
    fake: FakeGateway, through: Open
) -> None:
    """Nobody reads a stream of the gateway on behalf of somebody who has left."""
    async with through(fake.app) as client:
        async with client.open("/stream") as stream:
            assert (await stream.next()).data == "first"
            assert not fake.left.is_set()
        assert await anyio.to_thread.run_sync(fake.left.wait, 10)


async def test_a_stream_ends_with_the_gateway(fake: FakeGateway, through: Open) -> None:
    """A gateway that leaves in the middle ends the stream, so that its reader connects again."""
    async with through(fake.app) as client:
        answer = await client.http.get("/cut")

    assert answer.content == b"data: 1\n\n"


async def test_a_part_is_not_taken_for_the_whole(fake: FakeGateway, through: Open) -> None:
    """Data that the gateway breaks off is broken off here, and no shorter answer."""
    async with through(fake.app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.http.get("/cut.json")


# -- who is asked, and what they are told ----------------------------------------------------------


async def test_the_gateway_is_told_what_it_needs_and_no_more(
    fake: FakeGateway, through: Open
) -> None:
    """Host is the gateway's; no origin, cookie or password goes on, nor what is of a connection."""
    async with through(fake.app) as client:
        own = str(client.http.base_url).rstrip("/")
        headers = {
            "origin": own,
            "cookie": "session=another server's",
            "authorization": "Basic x",
            "referer": own,
            "last-event-id": "7",
            "accept-encoding": "gzip, br",
            "te": "trailers",
        }
        answer = await client.http.get("/x%2Fy/z?a=%2F&b=1", headers=headers)
        told = answer.json()["headers"]
        gateway = client.gateway.address

    assert answer.status_code == 203
    assert answer.json()["url"] == f"{gateway}/x%2Fy/z?a=%2F&b=1"
    assert told["host"] == gateway.removeprefix("http://")
    assert told["accept-encoding"] == "identity"
    assert told["last-event-id"] == "7"
    assert told.keys().isdisjoint({"origin", "cookie", "authorization", "referer", "te"})


async def test_headers_of_the_connection_end_here(fake: FakeGateway, through: Open) -> None:
    """What a gateway says of its connection to us is not said of ours to the browser."""
    async with through(fake.app) as client:
        answer = await client.http.get("/x")

    assert answer.headers["x-kept"] == "1"
    assert answer.headers.keys().isdisjoint({"x-hop", "keep-alive", "connection"})
    assert len(answer.headers.get_list("date")) == 1


def test_headers_named_by_the_connection_are_dropped() -> None:
    """Names in any case, one or many."""
    headers = [("Connection", "X-One, x-two"), ("x-one", "1"), ("X-Two", "2"), ("Etag", "e")]
    assert list(headers_of(httpx.Response(200, headers=headers))) == [(b"etag", b"e")]


@pytest.mark.parametrize(
    "path", ["/../x", "/a/../../x", "/%2e%2e/x", "/.%2E/x", "/./x", "http://other.example/x"]
)
async def test_no_path_leads_out_of_the_gateway(
    fake: FakeGateway, through: Open, path: str
) -> None:
    """Dots are refused, and an address for a path is one of the gateway or none."""
    async with through(fake.app, below="/training") as client:
        port = client.http.base_url.port
        async with await anyio.connect_tcp("127.0.0.1", port) as raw:
            await raw.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = (await raw.receive()).decode()

    inside = f'"url":"{client.gateway.address}/training/'
    assert answer.startswith("HTTP/1.1 400") or inside in answer, answer


async def test_two_slashes_are_a_path(fake: FakeGateway, through: Open) -> None:
    """What would be a host in an address stays a part of the path."""
    async with through(fake.app) as client:
        port = client.http.base_url.port
        async with await anyio.connect_tcp("127.0.0.1", port) as raw:
            await raw.send(b"GET //other.example/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = (await raw.receive()).decode()

    assert f'"url":"{client.gateway.address}//other.example/x"' in answer


async def test_a_gateway_may_lie_below_a_path(run: Any, through: Open) -> None:
    """A gateway that is mounted in another server is asked below where it is mounted."""
    await run.step(1)
    app = Starlette(routes=[Mount("/training", create_app(run.directory.cfg))])
    async with through(app, below="/training/") as client:
        page = await client.http.get("/")
        rows = await client.http.get("/api/p5/runs")

    assert "Checkpoints" in page.text
    assert rows.json()["p5_dir"] == str(run.directory.root)


async def test_redirects_stay_here(run: Any, fake: FakeGateway, through: Open) -> None:
    """A redirect to the gateway leads to the same path here; any other leads where it did."""
    await run.step(1)
    async with through(create_app(run.directory.cfg)) as client:
        inside = await client.http.get("/setup/run/run/0/sae")
        followed = await client.http.get("/setup/run/run/0/sae", follow_redirects=True)
    async with through(fake.app) as client:
        outside = await client.http.get("/elsewhere")

    assert inside.headers["location"] == "/setup/run/run/0/sae/"
    assert followed.status_code == 200
    assert outside.headers["location"] == "https://other.example/x"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"host": "localhost:1"}, 203),
    ],
)
async def test_other_pages_may_not_ask_through_us(
    fake: FakeGateway, through: Open, headers: dict[str, str], status: int
) -> None:
    """The server that the gateway trusts looks at Host and Origin itself."""
    async with through(fake.app) as client:
        assert (await client.http.get("/x", headers=headers)).status_code == status


async def test_a_circle_is_broken(fake: FakeGateway, through: Open) -> None:
    """A development server that is told to ask another one says so, and does not go round."""
    async with through(create_ui("http://127.0.0.1:9")) as client:
        answer = await client.http.get("/api/p5/runs")

    assert answer.status_code == 502
    assert "is an `aegir ui` as well" in answer.json()["error"]


async def test_proxies_of_the_environment_are_not_asked(fake: FakeGateway, connect: Open) -> None:
    """A gateway is asked directly."""
    with serve(fake.app, port=0) as server:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("HTTP_PROXY", "http://127.0.0.1:9")
            environment.setenv("ALL_PROXY", "http://127.0.0.1:9")
            app = create_ui(server.address)
        async with connect(app) as client:
            assert (await client.http.get("/x")).status_code == 203


@pytest.mark.parametrize(
    "address",
    ["localhost:8091", "ftp://h/", "http://", "", "http://u:p@h", "http://h?x=1", "http://h:x"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """The message names the value, an example, and where it is set."""
    with pytest.raises(OptionError, match="AEGIR_GATEWAY_URL") as caught:
        create_ui(address)

    assert f"`{address}`" in str(caught.value)
    assert "http://127.0.0.1:8091" in str(caught.value)


# -- gateways that cannot be shown -----------------------------------------------------------------


@pytest.fixture
async def away() -> AsyncIterator[httpx.AsyncClient]:
    """A development server whose gateway is away."""
    app = create_ui("http://127.0.0.1:9")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost"
    ) as http:
        yield http


async def test_a_gateway_that_is_away_is_named(away: httpx.AsyncClient) -> None:
    """People get a page with address, variable and commands, programs an error; both 502."""
    page = await away.get("/", headers={"accept": "text/html"})
    data = await away.get("/api/p5/runs")

    assert (page.status_code, data.status_code) == (502, 502)
    for text in ("http://127.0.0.1:9", "AEGIR_GATEWAY_URL", "just gateway", 'data-away="yes"'):
        assert text in page.text
    assert "script-src 'nonce-" in page.headers["content-security-policy"]
    assert "http://127.0.0.1:9" in data.json()["error"]
    assert "just gateway" in data.json()["error"]


async def test_an_event_stream_waits_for_a_gateway_that_is_away(away: httpx.AsyncClient) -> None:
    """A browser gives up on a stream that is an error, and opens one anew that has ended."""
    answer = await away.get("/api/p5/sae/stream", headers={"accept": "text/event-stream"})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("retry: 1000\n")
    assert "does not answer" in answer.text


async def test_a_gateway_that_draws_its_pages_is_too_old(fake: FakeGateway, through: Open) -> None:
    """Its pages are not shown as if they were this checkout's."""
    async with through(fake.app) as client:
        answer = await client.http.get("/old", headers={"accept": "text/html"})

    assert answer.status_code == 502
    assert "finished page" in answer.text
    assert "data-away" not in answer.text


async def test_a_page_that_is_none_is_named(fake: FakeGateway, through: Open) -> None:
    """What the gateway sends instead of a page is told with its reason."""
    async with through(fake.app) as client:
        answer = await client.http.get("/odd")

    assert answer.status_code == 502
    assert "template" in answer.json()["error"]


class Body(httpx.AsyncByteStream):
    """A body that remembers whether it was closed."""

    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the whole."""
        yield b"body"

    async def aclose(self) -> None:
        """Remember it."""
        self.closed = True


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_that_is_passed_on_is_closed(method: str) -> None:
    """Nothing is left open, whether anybody reads the body or not."""
    body = Body()
    async with Gateway("http://127.0.0.1:9") as gateway:
        answer = httpx.Response(200, stream=body)
        passing = Passing(answer, gateway=gateway, stopping=Stopping(lambda: False))
        sent: list[bytes] = []

        async def receive() -> dict[str, Any]:
            await anyio.sleep_forever()
            return {}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        await passing({"type": "http", "method": method}, receive, send)

    assert body.closed
    assert b"".join(sent) == (b"body" if method == "GET" else b"")


async def test_an_answer_that_is_read_is_closed() -> None:
    """Nothing is left open behind a page."""
    body = Body()
    async with Gateway("http://127.0.0.1:9") as gateway:
        assert await gateway.read(httpx.Response(200, stream=body)) == b"body"

    assert body.closed
