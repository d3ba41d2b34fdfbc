"""What is no page goes through as it comes: the same bytes, as soon as they are there."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import httpx
from starlette.types import Receive, Scope, Send

from aegir_adapters.web import sse
from aegir_adapters.web.dev.gateway import Gateway, headers_of, media_type_of
from aegir_adapters.web.response import ChunkStream, Pace
from aegir_adapters.web.stopping import Stopping

__all__ = ["EVENTS", "Absence", "Passing"]

EVENTS = "text/event-stream"


class Passing(ChunkStream):
    """Passes an answer of the gateway on.

    Ends the gateway's answer when the client leaves. An answer that the gateway breaks off is
    broken off here too, so that nobody takes a part for the whole; an event stream ends, so that
    its reader connects again.

    Args:
        answer: the gateway's, its body unread.
        gateway: where it comes from.
        stopping: when to end because this server does.
    """

    def __init__(self, answer: httpx.Response, *, gateway: Gateway, stopping: Stopping) -> None:
        super().__init__(
            self._body(),
            stopping=stopping,
            pace=Pace(),
            status_code=answer.status_code,
            raw_headers=list(headers_of(answer)),
        )
        if "location" in answer.headers:
            self.headers["location"] = gateway.local(answer.headers["location"])
        self._answer = answer
        self._broken = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request (an ASGI application)."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._answer.aclose()

    async def _stream(self, receive: Receive, send: Send) -> bool:
        listens = await super()._stream(receive, send)
        return listens and not (self._broken and media_type_of(self._answer) != EVENTS)

    async def _body(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._answer.aiter_raw():
                yield chunk
        except httpx.TransportError:
            self._broken = True


class Absence(ChunkStream):
    """Stands for the event stream of a gateway that is away, and ends at once.

    A browser that gets an error for an answer never connects again; one whose stream ends does so
    in a second, with the last event id it has.

    Args:
        reason: why there is nothing, for people who look.
        stopping: when to end because this server does.
    """

    def __init__(self, reason: str, *, stopping: Stopping) -> None:
        headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-store")]
        chunks = self._opening(reason)
        super().__init__(chunks, stopping=stopping, pace=Pace(), raw_headers=headers)

    async def _opening(self, reason: str) -> AsyncGenerator[bytes, None]:
        yield sse.retry(1000) + sse.comment(reason)
