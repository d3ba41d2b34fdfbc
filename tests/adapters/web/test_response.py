from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aegir_adapters.web.response import EventStream, Pace
from aegir_adapters.web.stopping import Stopping

pytestmark = pytest.mark.anyio

SCOPE = {"type": "http", "method": "GET"}


class Chunks:
    """A body that remembers whether it was closed."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self.closed = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        """Yield numbered events."""
        number = 0
        try:
            while self.count is None or number < self.count:
                number += 1
                yield b"data: %d\n\n" % number
        finally:
            self.closed = True


async def listening() -> dict[str, Any]:
    """Receive from a client that stays."""
    await anyio.sleep_forever()
    return {}


def stream(chunks: Chunks, pace: Pace | None = None) -> EventStream:
    """Answer with a body, on a server that goes on for ever."""
    return EventStream(chunks(), stopping=Stopping(lambda: False), pace=pace or Pace())


async def test_a_finished_body_ends_the_response() -> None:
    """Headers, opening, chunks, and a proper end."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await stream(Chunks(2))(SCOPE, listening, send)

    assert [m["type"] for m in sent] == ["http.response.start"] + ["http.response.body"] * 4
    assert [m["body"] for m in sent[2:]] == [b"data: 1\n\n", b"data: 2\n\n", b""]
    assert not sent[-1]["more_body"]


async def test_a_frozen_client_is_let_go() -> None:
    """A chunk that is not taken in time ends the stream and closes its body."""
    chunks = Chunks()

    async def send(message: Any) -> None:
        if message.get("body", b"").startswith(b"data: 3"):
            await anyio.sleep_forever()

    with anyio.fail_after(5):
        await stream(chunks, Pace(send_timeout_s=0.01))(SCOPE, listening, send)

    assert chunks.closed


async def test_a_client_that_leaves_ends_the_body() -> None:
    """A disconnect closes the body, even one that would never end and never waits."""
    chunks = Chunks()
    enough = anyio.Event()

    async def send(message: Any) -> None:
        if message.get("body", b"").startswith(b"data: 3"):
            enough.set()

    async def leaving() -> dict[str, Any]:
        await enough.wait()
        return {"type": "http.disconnect"}

    with anyio.fail_after(5):
        await stream(chunks)(SCOPE, leaving, send)

    assert chunks.closed


async def test_a_stream_that_never_waits_starves_nobody() -> None:
    """Other tasks get a turn between any two chunks."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async def send(message: Any) -> None:
        pass

    async with anyio.create_task_group() as group:
        group.start_soon(count_turns)
        await stream(Chunks(100))(SCOPE, listening, send)
        group.cancel_scope.cancel()

    assert turns >= 100


async def test_asking_for_the_head_opens_no_stream() -> None:
    """HEAD gets the headers and an end."""
    sent: list[Any] = []
    chunks = Chunks()

    async def send(message: Any) -> None:
        sent.append(message)

    await stream(chunks)({"type": "http", "method": "HEAD"}, listening, send)

    assert [m.get("body") for m in sent] == [None, b""]
