"""A connection may break behind any byte; whoever comes back hears everything, each record once.

The client is written after the specification, not after our code:
https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import pytest
from starlette.applications import Starlette
from starlette.types import Message

from aegir_adapters.web import create_app, serve
from aegir_stream import codec
from aegir_stream.events import SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.testing import make_append
from core.runs import Life, drive

pytestmark = pytest.mark.anyio

STREAM = "/api/p5/sae/stream"
TORN = b'{"step":2,"token_index":1,"lay'
AT_ONCE = 16
"""Clients at a time: they share one tail, which is what makes thousands of them cheap."""

PASSING = {"source", "heartbeat", "idle", "fell_behind"}
"""Events about the connection rather than about the log."""


class Event(NamedTuple):
    """What a handler gets."""

    name: str
    data: str


class Heard(NamedTuple):
    """What the bytes of one connection mean: events that were dispatched, and where they ended."""

    events: list[Event]
    last_id: str


def understood(received: bytes, *, last_id: str = "") -> Heard:
    """Interpret a stream that ended, or was cut, after these bytes.

    An event is dispatched by its blank line; what is pending at the end is discarded, and so is an
    `id` whose event was never dispatched.
    """
    events: list[Event] = []
    data: list[str] = []
    name, id_buffer = "", last_id
    text = received.decode("utf-8", errors="replace").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    for line in re.split("\r\n|\n|\r", text)[:-1]:
        if not line:
            last_id = id_buffer
            if data:
                events.append(Event(name or "message", "\n".join(data)))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            id_buffer = value
    return Heard(events, last_id)


def records(events: Iterable[Event]) -> list[str]:
    """Return the records among events, in order."""
    return [event.data for event in events if event.name == "message"]


def announced(events: Iterable[Event]) -> dict[int, set[Event]]:
    """Return what was said between the records, by the number of records before it.

    Only records have an id, so what stands behind the last one may be said again.
    """
    said: dict[int, set[Event]] = defaultdict(set)
    seen = 0
    for event in events:
        if event.name == "message":
            seen += 1
        elif event.name not in PASSING:
            said[seen].add(event)
    return dict(said)


class Line:
    """A connection in this process, which breaks after so many bytes of the body.

    Some servers ignore what is sent to a client that is gone, others raise: each second one does.
    """

    def __init__(self, limit: int | None) -> None:
        self.status = 0
        self.body = bytearray()
        self._limit = limit
        self._gone = anyio.Event()

    async def receive(self) -> Message:
        """Return once the client is gone."""
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take what still arrives."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if self._gone.is_set() and self._limit and self._limit % 2:
            raise ConnectionResetError
        room = None if self._limit is None else self._limit - len(self.body)
        self.body += message["body"][:room]
        if self._limit is not None and len(self.body) >= self._limit:
            self._gone.set()


async def received(
    app: Starlette, query: str, *, last_id: str = "", limit: int | None = None
) -> bytes:
    """Connect; return the body until the server ends it or the line breaks behind `limit`."""
    line = Line(limit)
    headers = [
        (b"host", b"localhost"),
        *([(b"last-event-id", last_id.encode())] if last_id else []),
    ]
    scope = {"type": "http", "method": "GET", "path": STREAM, "headers": headers, "root_path": ""}
    with anyio.fail_after(30):
        await app({**scope, "query_string": query.encode()}, line.receive, line.send)
    assert line.status == 200 or (line.status == 204 and last_id)
    return bytes(line.body)


class Reader:
    """A reader of one address, which comes back as a browser does: same address, last id.

    What the server says behind an id depends on nothing else, so it is asked once for each.
    """

    def __init__(self, app: Starlette, query: str) -> None:
        self._app = app
        self._query = query
        self._known: dict[str, bytes] = {}

    async def hears(self, *limits: int) -> list[Event]:
        """Lose the connection behind so many bytes, once per limit; hear the rest."""
        events: list[Event] = []
        last_id = ""
        for limit in limits:
            body = await received(self._app, self._query, last_id=last_id, limit=limit)
            assert body == (await self.all_behind(last_id))[:limit]
            more, last_id = understood(body, last_id=last_id)
            events += more
        return events + understood(await self.all_behind(last_id)).events

    async def all_behind(self, last_id: str = "") -> bytes:
        """Connect and stay to the end."""
        if last_id not in self._known:
            self._known[last_id] = await received(self._app, self._query, last_id=last_id)
        return self._known[last_id]


async def for_each(things: Iterable[Any], act: Callable[[Any], Any]) -> None:
    """Do something for many things, a few at a time."""
    limiter = anyio.Semaphore(AT_ONCE)

    async def limited(thing: Any) -> None:
        async with limiter:
            await act(thing)

    async with anyio.create_task_group() as tasks:
        for thing in things:
            tasks.start_soon(limited, thing)


def take_step(life: Life) -> None:
    """Take a step that records at two layers."""
    life.step += 1
    life.serial += 1
    fresh = [
        SAELogRecord(
            step=life.step,
            token_index=0,
            layer_index=layer,
            top_feature_indices=(),
            top_feature_activations=(),
            reconstruction_loss=0.5 + layer,
            completion=life.serial,
        )
        for layer in (0, 4)
    ]
    drive(life.sink.write(make_append(*fresh)))
    life.surviving += fresh
    life.everything += fresh


def spelled(recorded: Iterable[SAELogRecord]) -> list[str]:
    """Return records as they stand in the log."""
    return [codec.encode(record).decode().rstrip("\n") for record in recorded]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Thousands of connections: the loop's own debugging would take ten times as long as they."""
    return "asyncio", {"debug": False}


@pytest.fixture
def life() -> Iterator[Life]:
    """A run with a checkpoint and a step behind it, alive; its path is short, as it is sent."""
    with tempfile.TemporaryDirectory(prefix="aegir-") as directory:
        life = Life(RunDirectory.at(directory))
        take_step(life)
        life.save()
        take_step(life)
        yield life
        life.kill()


def go_on(life: Life) -> None:
    """Die in the middle of a line, resume from the checkpoint, run to the end."""
    life.kill(torn=TORN)
    life.resume("checkpoint-1")
    take_step(life)
    take_step(life)
    life.finish()


async def test_a_finished_run_survives_a_cut_at_every_byte(life: Life) -> None:
    """After a cut behind byte n and a reconnect, for every n, each record came once, in order."""
    go_on(life)
    reader = Reader(create_app(life.run.root), "from=start")
    whole = await reader.all_behind()
    expected = understood(whole).events
    assert records(expected) == spelled(life.surviving)
    assert {event.name for event in expected} > {"checkpoint", "closed"}

    async def cut(limit: int) -> None:
        events = await reader.hears(limit)
        assert records(events) == records(expected), limit
        assert announced(events) == announced(expected), limit

    await for_each(range(1, len(whole) + 1), cut)


async def test_a_rewound_reader_survives_a_cut_at_every_byte(life: Life) -> None:
    """Who was reading what a resume rewound hears of the torn line and of the rewind, wherever cut.

    The reader had come as far as the first record that was rewound later.
    """
    app = create_app(life.run.root)
    before = await tail_of(app, "from=start", count=3)
    go_on(life)
    reader = Reader(app, f"cursor={before.last_id}")
    whole = await reader.all_behind()
    expected = understood(whole).events
    assert records(expected) == spelled(life.everything[3:])
    assert Counter(event.name for event in expected) >= Counter(["corrupt", "rewound", "closed"])

    async def cut(limit: int) -> None:
        events = await reader.hears(limit)
        assert records(events) == records(expected), limit
        assert announced(events) == announced(expected), limit

    await for_each(range(1, len(whole) + 1), cut)


async def test_a_growing_run_survives_a_cut_at_every_byte(life: Life) -> None:
    """Cut while the run lives, at every byte of what is there; back when it has gone on and ended.

    Meanwhile the process was killed in mid-line, and a resume rewound what some had heard.
    """
    app = create_app(life.run.root)
    there = await tail_of(app, "from=start", count=4)
    heard: dict[int, Heard] = {}

    async def cut(limit: int) -> None:
        heard[limit] = understood(await received(app, "from=start", limit=limit))

    await for_each(range(1, there.size + 1), cut)
    go_on(life)
    surviving, everything = spelled(life.surviving), spelled(life.everything)
    reader = Reader(app, "from=start")

    async def come_back(limit: int) -> None:
        events, last_id = heard[limit]
        rest = understood(await reader.all_behind(last_id)).events
        had_some_rewound = len(records(events)) > 2
        expected = everything if had_some_rewound else surviving
        assert records(events + rest) == expected, limit
        assert any(event.name == "rewound" for event in rest) == had_some_rewound, limit

    await for_each(heard, come_back)


async def test_two_cuts_in_a_row_are_no_different(life: Life) -> None:
    """Every pair of a coarse grid of cuts: behind byte n, then behind byte m of what follows."""
    go_on(life)
    reader = Reader(create_app(life.run.root), "from=start")
    whole = await reader.all_behind()
    expected = understood(whole).events
    grid = range(1, len(whole), len(whole) // 20)

    async def cut(limits: tuple[int, int]) -> None:
        events = await reader.hears(*limits)
        assert records(events) == records(expected), limits
        assert announced(events) == announced(expected), limits

    await for_each([(first, second) for first in grid for second in grid], cut)


async def test_a_cut_of_a_real_connection_is_no_different(life: Life) -> None:
    """The same over TCP, where the client resets the connection after so many bytes."""
    go_on(life)
    app = create_app(life.run.root)
    whole = await received(app, "from=start")
    expected = records(understood(whole).events)
    with serve(app, port=0) as server:
        for limit in range(1, len(whole), len(whole) // 12):
            start = await anyio.to_thread.run_sync(reset_after, server.address, limit)
            events, last_id = understood(start)
            rest = await anyio.to_thread.run_sync(reset_after, server.address, None, last_id)
            assert len(start) == limit
            assert records(events) + records(understood(rest).events) == expected, limit


# -- reading -----------------------------------------------------------------------------------


class Tail(NamedTuple):
    """How far a reader of a growing run came."""

    size: int
    last_id: str


async def tail_of(app: Starlette, query: str, *, count: int) -> Tail:
    """Read a stream that does not end until `count` records were heard, and not a byte more."""
    line = Line(None)
    async with listening(app, query, line):
        with anyio.fail_after(30):
            while len(records(understood(bytes(line.body)).events)) < count:
                await anyio.lowlevel.checkpoint()
    body = bytes(line.body)
    ends = [match.end() for match in re.finditer(rb"\n\n", body)]
    size = next(end for end in ends if len(records(understood(body[:end]).events)) == count)
    return Tail(size, understood(body[:size]).last_id)


@contextlib.asynccontextmanager
async def listening(app: Starlette, query: str, line: Line) -> AsyncIterator[None]:
    """Keep a connection open."""
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": STREAM, "headers": headers, "root_path": ""}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, {**scope, "query_string": query.encode()}, line.receive, line.send)
        yield
        tasks.cancel_scope.cancel()


def reset_after(address: str, limit: int | None, last_id: str = "") -> bytes:
    """Read a body over TCP up to a byte, then reset the connection; or up to its end."""
    url = urlsplit(address)
    asked = f"GET {STREAM}?from=start HTTP/1.0\r\nHost: localhost\r\n"
    asked += f"Last-Event-ID: {last_id}\r\n" if last_id else ""
    body = bytearray()
    with socket.create_connection((url.hostname, url.port or 80), timeout=20) as connection:
        connection.sendall(asked.encode() + b"\r\n")
        file = connection.makefile("rb")
        with contextlib.closing(file):
            while file.readline() not in {b"\r\n", b""}:
                pass
            while limit is None or len(body) < limit:
                room = 4096 if limit is None else limit - len(body)
                piece = file.read1(room)
                if not piece:
                    break
                body += piece
        # Zero seconds of lingering: a reset rather than an end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return bytes(body)
