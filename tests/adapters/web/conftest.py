"""A run to write and a client to read it with.

The client reads event streams after the specification, not after our code:
https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from aegir_adapters.web import create_app, serve
from aegir_stream import codec
from aegir_stream.events import GRPOMetrics, PassName, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks.journal import JournalSink
from aegir_stream.typing import Append


class Event(NamedTuple):
    """What a handler gets."""

    name: str
    data: str
    cursor: str | None

    @property
    def body(self) -> Any:
        """Return the decoded JSON."""
        return json.loads(self.data)


class EventReader:
    """Turns bytes, however they were cut, into events."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes."""
        *blocks, self._pending = re.split(rb"(?<=\n)\n", self._pending + data)
        events = (_dispatch(block.decode()) for block in blocks)
        return [event for event in events if event is not None]


def _dispatch(block: str) -> Event | None:
    name, data, cursor = "message", [], None
    for line in re.split("\r\n|\r|\n", block)[:-1]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            cursor = value
    return Event(name, "\n".join(data), cursor) if data else None


@pytest.fixture(scope="session")
def parse() -> Callable[[bytes], list[Event]]:
    """What a client makes of a finished stream."""
    return lambda data: EventReader().feed(data)


class Connection:
    """An open stream, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._events = self._read()

    async def _read(self) -> AsyncGenerator[Event, None]:
        reader = EventReader()
        async for data in self.response.aiter_bytes():
            for event in reader.feed(data):
                yield event

    async def next(self) -> Event:
        """Return the next event, whatever it is."""
        with anyio.fail_after(10):
            return await anext(self._events)

    async def until(self, name: str) -> Event:
        """Return the next event of a name, passing over others."""
        with anyio.fail_after(20):
            while (event := await self.next()).name != name:
                pass
        return event

    async def records(self, count: int) -> list[Event]:
        """Return the next records, passing over other events."""
        return [await self.until("message") for _ in range(count)]

    async def rest(self) -> list[Event]:
        """Return every event until the server ends the stream."""
        with anyio.fail_after(10):
            return [event async for event in self._events]


class Client:
    """A client of one server, on a real connection."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    @asynccontextmanager
    async def open(
        self, path: str = "/api/p5/sae/stream", *, last_event_id: str | None = None
    ) -> AsyncIterator[Connection]:
        """Open a stream."""
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        async with self.http.stream("GET", path, headers=headers) as response:
            yield Connection(response)


class Run:
    """A run that a test writes, through the same sink as a trainer."""

    def __init__(self, root: Path, **identity: Any) -> None:
        self.directory = RunDirectory.at(root)
        self.sink = JournalSink(self.directory, identity={"layers": [0, 4], **identity})
        self.lines: list[str] = []

    async def step(self, step: int, *, tokens: int = 3, pass_: PassName | None = None) -> None:
        """Append one step: its records at two layers, and its metrics."""
        records = [
            SAELogRecord(
                step=step,
                token_index=token,
                layer_index=layer,
                top_feature_indices=(token, 40),
                top_feature_activations=(2.0 + step, 1.0),
                reconstruction_loss=0.5,
                completion=0,
                pass_=pass_,
            )
            for token in range(tokens)
            for layer in (0, 4)
        ]
        data = b"".join(map(codec.encode, records))
        self.lines += data.decode().splitlines()
        await self.sink.open()
        await self.sink.write(
            Append(stream="sae_features", data=data, records=len(records), step=step)
        )
        metrics = GRPOMetrics(step=step, ts=time.time(), reward_mean=step / 10, reward_std=0.1)
        await self.sink.write(
            Append(stream="grpo_metrics", data=codec.encode(metrics), records=1, step=step)
        )

    async def save(self, step: int) -> None:
        """Save a checkpoint."""
        name = f"checkpoint-{step}"
        self.directory.write_metadata(name, {"run_id": "r1"})
        await self.sink.seal(checkpoint=name, step=step)

    async def finish(self) -> None:
        """End the run."""
        await self.sink.aclose()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Web servers run on asyncio."""
    return "asyncio"


@pytest.fixture
async def sampling_run(tmp_path: Path) -> AsyncIterator[Run]:
    """A run that records the passes of sampling only."""
    run = Run(tmp_path / "sampling", passes=["decode", "prefill"])
    yield run
    await run.finish()


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """An empty run."""
    run = Run(tmp_path / "run")
    yield run
    await run.finish()


@pytest.fixture
def connect() -> Callable[[Starlette], AbstractAsyncContextManager[Client]]:
    """Serve an application on a free port and connect to it."""

    @asynccontextmanager
    async def connected(app: Starlette) -> AsyncIterator[Client]:
        server = serve(app, port=0)
        with server:
            async with httpx.AsyncClient(base_url=server.address, timeout=10) as http:
                yield Client(http)

    return connected


@pytest.fixture
async def client(run: Run, connect: Any) -> AsyncIterator[Client]:
    """A client of a server that shows the run."""
    async with connect(create_app(run.directory.cfg)) as client:
        yield client
