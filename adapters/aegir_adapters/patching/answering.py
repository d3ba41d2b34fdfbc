"""`POST /v1/patch_sweep`: one answer as JSON, or its parts as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aegir_adapters.patching.request import PatchSweepRequest, RequestError, decode_request
from aegir_adapters.patching.response import (
    CellEvent,
    ErrorEvent,
    PatchSweepResponse,
    StartEvent,
    SummaryEvent,
)
from aegir_adapters.patching.running import RunningSweep
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.worker import Worker, interrupting, single_error

__all__ = ["SweepEndpoint", "read_body", "refusal", "strict_json"]

Event = StartEvent | CellEvent | SummaryEvent | ErrorEvent

_PATIENCE_S = 30.0
_DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    # A server closes the connection after a failure, which no later request may run into.
    (b"connection", b"close"),
]


class SweepEndpoint:
    """Answers requests for sweeps (an ASGI application).

    Everything is let go as soon as the client leaves, or takes nothing for too long: the model
    stops at the next layer.

    Args:
        service: sweeps.
        worker: runs what blocks.
        patience_s: how long the client may take for one part of the answer.
    """

    def __init__(
        self, service: PatchService, worker: Worker, *, patience_s: float = _PATIENCE_S
    ) -> None:
        self._service = service
        self._worker = worker
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            body = await read_body(Request(scope, receive), self._service.limits.body_bytes)
            async with _while_connected(receive):
                await self._answer(body, scope, receive, send)
        except RequestError as error:
            await refusal(error)(scope, receive, send)
        except ClientDisconnect:
            return

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_request(body, PatchSweepRequest)
        async with (
            interrupting() as interrupt,
            self._worker.entered(self._service.sweep(request, interrupt=interrupt)) as running,
        ):
            if request.stream:
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await self._stream(running, send)
            else:
                await strict_json(await self._drained(running))(scope, receive, send)

    async def _drained(self, running: RunningSweep) -> PatchSweepResponse:
        while await self._worker.run(running.next_batch) is not None:
            pass
        return await self._worker.run(running.summary)

    async def _stream(self, running: RunningSweep, send: Send) -> None:
        await self._send(send, _framed([running.start]))
        try:
            while (cells := await self._worker.run(running.next_batch)) is not None:
                await self._send(send, _framed(cells))
            summary = await self._worker.run(running.summary)
        except RuntimeError as error:
            # Such as a GPU without memory. The status is sent, so the client is told in the stream,
            # once everything is let go.
            await self._worker.run(running.close)
            await self._send(send, _framed([ErrorEvent(error=f"{error}")]), more=False)
            raise
        await self._send(send, _framed([_summary_event(summary)]) + _DONE, more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        try:
            with anyio.fail_after(self._patience_s):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise ClientDisconnect from None


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return a request's body.

    Raises:
        RequestError: it is too large.
        ClientDisconnect: the client left before it had sent it.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit_bytes:
            raise RequestError(
                "body", f"more than {limit_bytes} bytes", allowed=f"at most {limit_bytes} bytes"
            )
    return bytes(body)


def refusal(error: RequestError) -> Response:
    """Return what tells a client what is wrong with its request."""
    return strict_json(
        {
            "error": str(error),
            "field": error.field,
            "value": error.value,
            "allowed": error.allowed,
            "hint": error.hint,
        },
        status_code=400,
    )


def strict_json(content: object, *, status_code: int = 200) -> Response:
    """Return an answer as JSON that every parser takes: what is no number is null."""
    return Response(
        msgspec.json.encode(content), status_code=status_code, media_type="application/json"
    )


@asynccontextmanager
async def _while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client leaves."""
    with single_error():
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
            yield
            group.cancel_scope.cancel()


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _framed(events: Iterable[Event]) -> bytes:
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(event) for event in events)


def _summary_event(response: PatchSweepResponse) -> SummaryEvent:
    return SummaryEvent(**msgspec.structs.asdict(response))
