"""Answers that stay open, and those of them that carry server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aegir_adapters.web import sse
from aegir_adapters.web.stopping import Stopping

__all__ = ["ChunkStream", "EventStream", "Listener", "Pace"]

_HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",
}
_OPENING = sse.retry(1000) + sse.comment("aegir-stream")
_HEARTBEAT = sse.event(b"{}", name="heartbeat")
_FAREWELL_S = 0.2


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how patiently a stream sends.

    Attributes:
        heartbeat_s: seconds between heartbeats.
        send_timeout_s: how long one chunk may take; a client slower than that is let go and
            resumes by its cursor when it comes back.
    """

    heartbeat_s: float = 10.0
    send_timeout_s: float = 30.0


class ChunkStream(Response):
    """Sends chunks until they end, the client leaves or the server stops.

    One checkpoint per chunk: a generator that never waits would otherwise starve every other
    client of the process.

    Args:
        chunks: the body; closed when the response ends, however it ends.
        stopping: when to end because the server does.
        pace: patience.
        status_code: the status.
        raw_headers: the headers.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        stopping: Stopping,
        pace: Pace,
        status_code: int = 200,
        raw_headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.background = None
        self.status_code = status_code
        self.raw_headers = list(raw_headers)
        self._chunks = chunks
        self._stopping = stopping
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request (an ASGI application)."""
        status, headers = self.status_code, self.raw_headers
        await send({"type": "http.response.start", "status": status, "headers": headers})
        async with aclosing(self._chunks):
            if scope["method"] == "HEAD" or await self._stream(receive, send):
                # Servers differ in what they do with what is sent to a client that has left.
                with anyio.move_on_after(_FAREWELL_S, shield=True), suppress(OSError):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, receive: Receive, send: Send) -> bool:
        """Return whether the client may still listen."""
        async with anyio.create_task_group() as group:
            client = Listener(send, group.cancel_scope, patience_s=self._pace.send_timeout_s)
            group.start_soon(self._until_disconnected, receive, group.cancel_scope)
            group.start_soon(self._until_stopped, group.cancel_scope)
            await self._begin(client, group)
            async for chunk in self._chunks:
                await client.send(chunk)
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        return not client.gone

    async def _begin(self, client: Listener, group: anyio.abc.TaskGroup) -> None:
        """Send what comes before the chunks."""

    async def _until_disconnected(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _until_stopped(self, scope: anyio.CancelScope) -> None:
        await self._stopping.wait()
        scope.cancel()


class EventStream(ChunkStream):
    """Sends chunks of whole events, and heartbeats between them.

    Args:
        chunks: whole events; closed when the response ends, however it ends.
        stopping: when to end because the server does.
        pace: heartbeat and patience.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], *, stopping: Stopping, pace: Pace
    ) -> None:
        headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
        super().__init__(chunks, stopping=stopping, pace=pace, raw_headers=headers)

    async def _begin(self, client: Listener, group: anyio.abc.TaskGroup) -> None:
        group.start_soon(self._beat, client)
        await client.send(_OPENING)

    async def _beat(self, client: Listener) -> None:
        while True:
            await anyio.sleep(self._pace.heartbeat_s)
            await client.send(_HEARTBEAT)


class Listener:
    """The client's end: takes whole chunks, one at a time, or is let go.

    Args:
        send: the server's.
        scope: cancelled when the client is gone.
        patience_s: how long a chunk may take.

    Attributes:
        gone: whether it was let go.
    """

    def __init__(self, send: Send, scope: anyio.CancelScope, *, patience_s: float) -> None:
        self._send = send
        self._scope = scope
        self._patience_s = patience_s
        self._turn = anyio.Lock(fast_acquire=True)
        self.gone = False

    async def send(self, chunk: bytes) -> None:
        """Send a chunk, or let the client go."""
        try:
            with anyio.fail_after(self._patience_s):
                async with self._turn:
                    await self._send(
                        {"type": "http.response.body", "body": chunk, "more_body": True}
                    )
        except (OSError, TimeoutError):
            self.gone = True
            self._scope.cancel()
