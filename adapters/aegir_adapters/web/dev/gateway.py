"""The gateway that all data comes from: one server, asked on behalf of browsers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
import httpx
from starlette.requests import Request

from aegir_adapters.web.drawing import CHARTS_TYPE, PAGE_TYPE
from aegir_stream.config import DEFAULT_GATEWAY_URL, GATEWAY_URL_VARIABLE
from aegir_stream.errors import AegirError, OptionError

__all__ = [
    "Gateway",
    "GatewayError",
    "PathError",
    "gateway_url",
    "headers_of",
    "media_type_of",
]

_CONNECT_S = 5.0
_SILENCE_S = 60.0
"""How long a gateway may say nothing: six of its heartbeats."""

_PASSED_ON = ("accept-language", "if-modified-since", "if-none-match", "last-event-id", "range")
"""What a gateway is told of a browser's request. No cookies: a browser sends the same ones to every
port of a host, so they may be another server's."""

_OF_A_BODY = "content-type"

_OF_THE_CONNECTION = frozenset(
    {
        "connection",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NAME = "aegir-ui"
_DOTS = re.compile(rb"(?:\.|%2e){1,2}", re.IGNORECASE)


class GatewayError(AegirError, ConnectionError):
    """The gateway does not answer, or answers with what no page can be made of.

    Attributes:
        away: whether it does not answer, so that asking again later may help.
    """

    def __init__(self, message: str, *, away: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.away = away


class PathError(AegirError, ValueError):
    """A path was asked for that could lead out of the gateway."""


def gateway_url(text: str) -> str:
    """Return the address of a gateway without a slash at its end.

    Raises:
        OptionError: it is no `http` or `https` address of a server, or of a path on it.
    """
    try:
        url = httpx.URL(text)
        is_plain = not (url.userinfo or url.query or url.fragment)
        if url.scheme in {"http", "https"} and url.host and is_plain:
            return str(url).rstrip("/")
    except httpx.InvalidURL:
        pass
    raise OptionError(
        f"Expected the address of a gateway such as {DEFAULT_GATEWAY_URL}, got `{text}`",
        hint=f"Set {GATEWAY_URL_VARIABLE}, or use --gateway",
    )


class Gateway:
    """Asks a gateway, and no other server.

    Args:
        address: its address, as `gateway_url` returns it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._base = httpx.URL(address)
        self._http = _client()

    async def ask(self, request: Request, *, body: bytes | None = None) -> httpx.Response:
        """Put a request to the gateway, once; the answer is still to be read, or closed.

        The gateway is asked as by a program and not by a page: whether a page may ask that is for
        the caller to say.

        Args:
            request: the browser's.
            body: what was sent with it, if anything.

        Raises:
            GatewayError: it does not answer, or is no gateway.
            PathError: the path could lead out of the gateway.
        """
        if _NAME in request.headers.get("via", ""):
            raise GatewayError(
                f"{self.address} is an `aegir ui` as well",
                hint=f"Let {GATEWAY_URL_VARIABLE} name a gateway, which `aegir serve` starts",
            )
        # A head has no body to draw from, so it is that of the page as the gateway draws it.
        undrawn = "" if request.method == "HEAD" else f"{PAGE_TYPE}, {CHARTS_TYPE}, "
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["accept"] = undrawn + request.headers.get("accept", "*/*")
        headers |= {"accept-encoding": "identity", "via": f"1.1 {_NAME}", "user-agent": _NAME}
        if body is not None and _OF_A_BODY in request.headers:
            headers[_OF_A_BODY] = request.headers[_OF_A_BODY]
        url = self._url(request)
        asked = self._http.build_request(request.method, url, headers=headers, content=body)
        try:
            return await self._http.send(asked, stream=True)
        except httpx.RequestError as error:
            raise self._away(error) from error

    async def read(self, answer: httpx.Response) -> bytes:
        """Return the body of an answer.

        Raises:
            GatewayError: the gateway left before its end.
        """
        try:
            return await answer.aread()
        except httpx.RequestError as error:
            raise self._away(error) from error
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()

    def local(self, location: str) -> str:
        """Return where a redirect leads, with the gateway's address left out."""
        rest = location.removeprefix(self.address)
        return rest if rest != location and rest.startswith("/") else location

    async def __aenter__(self) -> Self:
        """Nothing is opened before it is needed."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections; new ones may be opened."""
        http, self._http = self._http, _client()
        await http.aclose()

    def _url(self, request: Request) -> httpx.URL:
        path: bytes = request.scope["raw_path"]
        query: bytes = request.scope["query_string"]
        raw = self._base.raw_path.rstrip(b"/") + path + (b"?" + query if query else b"")
        # Dots are taken out of an address on the way, and with them what stands before them.
        if path.startswith(b"/") and not any(map(_DOTS.fullmatch, path.split(b"/"))):
            with suppress(httpx.InvalidURL, UnicodeError):
                return self._base.copy_with(raw_path=raw)
        raise PathError(f"Expected a path of the gateway, got `{path.decode('latin-1')}`")

    def _away(self, error: httpx.RequestError) -> GatewayError:
        reason = str(error) or type(error).__name__
        return GatewayError(
            f"The gateway {self.address} does not answer: {reason}",
            away=True,
            hint=f"Start it in the primary checkout (just gateway), or set {GATEWAY_URL_VARIABLE}",
        )


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
        # A connection that is kept may be one to a gateway that has ended since.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        trust_env=False,
    )


def media_type_of(answer: httpx.Response) -> str:
    """Return the media type of an answer, without its parameters."""
    return str(answer.headers.get("content-type", "")).partition(";")[0].strip().lower()


def headers_of(answer: httpx.Response) -> Iterable[tuple[bytes, bytes]]:
    """Yield the headers of an answer that are not about the connection it came by."""
    named = answer.headers.get("connection", "").lower().replace(",", " ").split()
    dropped = _OF_THE_CONNECTION.union(named)
    for name, value in answer.headers.raw:
        if name.decode("latin-1").lower() not in dropped:
            yield name.lower(), value
