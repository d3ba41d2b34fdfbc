"""The files of the pages: ours, and BokehJS from where it is installed."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from aegir_adapters.web.plots import bokehjs_path

__all__ = ["STATIC", "send_bokehjs", "static_names", "static_response", "static_routes"]

STATIC = Path(__file__).parent / "static"
"""Where our files lie."""

_KINDS = {".css": "text/css", ".js": "text/javascript"}
_FOREVER = "public, max-age=31536000, immutable"


def static_routes() -> list[Route]:
    """Return one route per file, read once; nothing else below `static/` exists."""
    return [*map(_route, static_names()), Route("/static/bokeh.min.js", send_bokehjs)]


def static_names() -> list[str]:
    """Return the names of our files. Reads the directory."""
    return sorted(path.name for path in STATIC.iterdir() if path.suffix in _KINDS)


def static_response(name: str) -> Response:
    """Return one of our files, read now. Browsers ask again whenever they need it.

    Args:
        name: one of `static_names()`.
    """
    path = STATIC / name
    headers = {"cache-control": "no-cache"}
    return Response(path.read_bytes(), media_type=_KINDS[path.suffix], headers=headers)


def send_bokehjs(_: Request) -> Response:
    """Answer with the installed BokehJS."""
    # Its address carries the version, so a browser need never ask again.
    headers = {"cache-control": _FOREVER}
    return FileResponse(bokehjs_path(), media_type="text/javascript", headers=headers)


def _route(name: str) -> Route:
    response = static_response(name)

    def answer(_: Request) -> Response:
        return response

    return Route(f"/static/{name}", answer)
