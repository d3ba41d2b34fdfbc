"""`GET /api/p5/sae/stream`: the SAE records of a run as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from aegir_adapters.web import sse
from aegir_adapters.web.ending import end_of_stream
from aegir_adapters.web.parameters import (
    ParameterError,
    StreamRequest,
    parse_stream_request,
)
from aegir_adapters.web.rendering import render, render_selected
from aegir_adapters.web.response import EventStream, Pace
from aegir_adapters.web.sharing import WhileWanted
from aegir_adapters.web.stopping import Stopping
from aegir_stream.events import Closed
from aegir_stream.hub import Block, Hub
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource, Start

__all__ = ["RecordStream"]

Chunks = tuple[bytes, ...]


class RecordStream:
    """Answers requests for the records of one run, all from one tail.

    Args:
        run: the run directory; it need not exist yet.
        stopping: ends open answers.
        pace: heartbeat and patience.
    """

    def __init__(self, run: RunDirectory, *, stopping: Stopping, pace: Pace) -> None:
        self._run = run
        self._stopping = stopping
        self._pace = pace
        self.hub: WhileWanted[Hub[Chunks]] = WhileWanted(self._make_hub, Hub.run)

    async def answer(self, request: Request) -> Response:
        """Return 400 for a bad parameter, 204 when there is nothing left, or the stream."""
        last = request.headers.get("last-event-id")
        try:
            asked = parse_stream_request(request.query_params, last_event_id=last)
        except ParameterError as error:
            return _refusal(error)
        resumes = asked.cursor or asked.start == "now"
        if resumes and await self._end(asked.cursor, asked.start):
            # What tells a browser not to connect again.
            return Response(status_code=204)
        return EventStream(self._read(asked), stopping=self._stopping, pace=self._pace)

    async def _read(self, asked: StreamRequest) -> AsyncGenerator[bytes, None]:
        async with (
            self.hub.use() as hub,
            aclosing(hub.subscribe(after=asked.cursor, start=asked.start)) as blocks,
        ):
            async for block in blocks:
                for chunk in _rendered(block, asked):
                    yield chunk
                if isinstance(block.delivery, Closed) and (
                    end := await self._end(block.after.text(), asked.start)
                ):
                    yield sse.place(end)
                    return

    async def _end(self, after: str | None, start: Start) -> str | None:
        return await anyio.to_thread.run_sync(
            lambda: end_of_stream(self._run, after=after, start=start), abandon_on_cancel=True
        )

    def _make_hub(self) -> Hub[Chunks]:
        return Hub(self._open, render=render)

    def _open(self, after: str | None, start: Start) -> RunSource:
        return RunSource(self._run, "sae_features", after=after, start=start)


def _rendered(block: Block[Chunks], asked: StreamRequest) -> Chunks:
    return render_selected(block.delivery, asked) if asked.is_special else block.rendered


def _refusal(error: ParameterError) -> Response:
    body = {
        "error": str(error),
        "parameter": error.parameter,
        "value": error.value,
        "allowed": error.allowed,
    }
    return JSONResponse(body, status_code=400)
