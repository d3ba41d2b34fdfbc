"""How a client reaches a patching service: over HTTP."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from aegir_adapters.patching.answers import CapturedRun, ModelResponse, TokensResponse
from aegir_adapters.patching.connection import Fields, OnCell
from aegir_adapters.patching.request import RequestError
from aegir_adapters.patching.response import (
    CellEvent,
    ErrorEvent,
    PatchSweepResponse,
    StartEvent,
    SummaryEvent,
)
from aegir_stream.errors import AegirError

__all__ = ["OverHTTP", "ServiceFailedError"]

T = TypeVar("T")

_CONNECT_S = 10.0


class ServiceFailedError(AegirError, RuntimeError):
    """The service failed, which is not the request's fault.

    Attributes:
        status: what it answered.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message, hint="Its own log has the traceback")
        self.status = status


class OverHTTP:
    """A service on another machine, or in another process (see `Connection`).

    Args:
        base_url: up to and including `/v1`.
        http: a client of one's own, which is then not closed.
    """

    def __init__(self, base_url: str, *, http: httpx.AsyncClient | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._owns_http = http is None
        # A sweep says nothing while a chunk is computed, however long that takes.
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        self._http = http or httpx.AsyncClient(timeout=timeout)

    async def sweep(self, fields: Fields, on_cell: OnCell | None) -> PatchSweepResponse:
        """See `Connection`."""
        if on_cell is None:
            return await self._ask("POST", "patch_sweep", fields, PatchSweepResponse)
        url, asked = f"{self._base_url}/patch_sweep", {**fields, "stream": True}
        summary: SummaryEvent | None = None
        async with self._http.stream("POST", url, **_json(asked)) as answer:
            if answer.status_code != httpx.codes.OK:
                _raise_for(answer.status_code, await answer.aread())
            # It is a generator, whatever its annotation says.
            async with aclosing(answer.aiter_lines()) as lines:  # type: ignore[type-var]
                # To the very end: a connection that is left before cannot be used again.
                async for line in lines:
                    event = _event(line)
                    if isinstance(event, CellEvent):
                        on_cell(event)
                    elif isinstance(event, SummaryEvent):
                        summary = event
                    elif isinstance(event, ErrorEvent):
                        raise ServiceFailedError(event.error, status=answer.status_code)
        if summary is None:
            message = "Expected a summary at the end of the stream, got none"
            raise ServiceFailedError(message, status=answer.status_code)
        return PatchSweepResponse(**msgspec.structs.asdict(summary))

    async def capture(self, fields: Fields) -> CapturedRun:
        """See `Connection`."""
        return await self._ask("POST", "patch_source", fields, CapturedRun)

    async def tokens(self, fields: Fields) -> TokensResponse:
        """See `Connection`."""
        return await self._ask("POST", "patch_tokens", fields, TokensResponse)

    async def model(self) -> ModelResponse:
        """See `Connection`."""
        return await self._ask("GET", "patch_model", None, ModelResponse)

    async def drop(self, run_id: str) -> bool:
        """See `Connection`."""
        url = f"{self._base_url}/patch_source/{quote(run_id, safe='')}"
        answer = await self._http.delete(url)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        if answer.status_code != httpx.codes.OK:
            _raise_for(answer.status_code, answer.content)
        return True

    async def aclose(self) -> None:
        """See `Connection`."""
        if self._owns_http:
            await self._http.aclose()

    async def _ask(self, method: str, path: str, fields: Fields | None, kind: type[T]) -> T:
        content = {} if fields is None else _json(fields)
        answer = await self._http.request(method, f"{self._base_url}/{path}", **content)
        if answer.status_code != httpx.codes.OK:
            _raise_for(answer.status_code, answer.content)
        return msgspec.json.decode(answer.content, type=kind)


Event = StartEvent | CellEvent | SummaryEvent | ErrorEvent


class _Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer that is none."""

    error: str
    field: str | None = None
    value: Any = None
    allowed: str = ""
    hint: str | None = None


def _event(line: str) -> Event | None:
    """Return the event in a line; `None` for what lies between and behind events."""
    data = line.removeprefix("data: ")
    if data in (line, "[DONE]"):
        return None
    event: Event = msgspec.json.decode(data, type=Event)
    return event


def _json(fields: Fields) -> dict[str, Any]:
    return {
        "content": msgspec.json.encode(fields),
        "headers": {"content-type": "application/json"},
    }


def _raise_for(status: int, body: bytes) -> None:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem(error=f"Expected an answer, got status {status}")
    if problem.field is not None:
        raise RequestError(problem.field, problem.value, allowed=problem.allowed, hint=problem.hint)
    raise ServiceFailedError(problem.error, status=status)
