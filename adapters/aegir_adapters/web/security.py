"""Who may ask: host allow-list, Origin check, and the headers of every answer. Pure ASGI.

A page of another site can make a browser send requests to a server on loopback, and with DNS
rebinding even read the answers. Both are refused by the `Host` and `Origin` that browsers send
and pages cannot change.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "ANY",
    "LOOPBACK",
    "NEVER_STORED",
    "Gatekeeper",
    "comes_from_own_page",
    "content_security_policy",
    "host_name",
]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names under which a browser on the same machine asks."""

ANY = "*"
"""Stands for every host, for servers that check it before us."""

NEVER_STORED = {"cache-control": "no-store"}
"""Header of what is true at the moment only."""

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Gatekeeper:
    """Lets a request through when it names an allowed host and comes from no foreign page.

    Args:
        app: what is protected.
        allowed_hosts: names without a port; `"*"` allows all.
        allowed_origins: other sites' origins (`https://ui.example:5173`) that may read answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Collection[str] = LOOPBACK,
        allowed_origins: Collection[str] = (),
    ) -> None:
        self.app = app
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self.allowed_origins = frozenset(origin.lower() for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 with the reason, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        refusal = self._refusal(headers.get("host", ""), origin)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), origin)
            await send(message)

        app = JSONResponse({"error": refusal}, status_code=403) if refusal else self.app
        await app(scope, receive, send_with_headers)

    def _refusal(self, host: str, origin: str | None) -> str | None:
        if ANY not in self.allowed_hosts and host_name(host) not in self.allowed_hosts:
            allowed = ", ".join(sorted(self.allowed_hosts))
            return f"Expected one of the hosts {allowed}, got `{host}`. Add it to allowed_hosts."
        if origin is None or origin.lower() in self.allowed_origins:
            return None
        if urlsplit(origin).netloc.lower() == host.lower():
            return None
        return f"Requests from pages of `{origin}` are refused. Add it to allowed_origins."

    def _add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        if origin is not None and origin.lower() in self.allowed_origins:
            headers["access-control-allow-origin"] = origin
            headers.add_vary_header("Origin")


def comes_from_own_page(headers: Headers) -> bool:
    """Tell whether a request comes from a page of this server, or from no page at all.

    For what does more than answer: pages that may read the answers may not ask for that.
    """
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        return False
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def host_name(host: str) -> str:
    """Return a `Host` header without its port: `[::1]:8091` is `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def content_security_policy(nonce: str) -> str:
    """Return the policy of a page: only what this server sent, only scripts with the nonce.

    Styles are allowed inline because BokehJS puts `<style>` elements into its shadow roots.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'nonce-{nonce}'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )
