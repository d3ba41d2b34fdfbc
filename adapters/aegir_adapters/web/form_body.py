"""What a browser sends with a form, read up to a bound."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from aegir_adapters.web.security import NEVER_STORED

__all__ = ["MOST_BYTES", "read_body"]

MOST_BYTES = 256 * 1024
"""Longest form that is read."""


async def read_body(request: Request) -> bytes | Response:
    """Return what was sent, or the answer to one who sends too much."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            error = f"Expected a form of at most {MOST_BYTES} bytes, got a longer one"
            return JSONResponse({"error": error}, 413, headers=NEVER_STORED)
    return body
