"""The files of the page: ours, and BokehJS from where it is installed. Read once."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from aegir_adapters.web.plots import bokehjs_path

__all__ = ["static_routes"]

_KINDS = {"page.css": "text/css", "page.js": "text/javascript", "viewer.js": "text/javascript"}
_FOREVER = "public, max-age=31536000, immutable"


def static_routes() -> list[Route]:
    """Return one route per file; nothing else below `static/` exists."""
    ours = [_route(name, kind) for name, kind in _KINDS.items()]
    return [*ours, Route("/static/bokeh.min.js", _bokehjs)]


def _route(name: str, kind: str) -> Route:
    content = (resources.files("aegir_adapters.web") / "static" / name).read_bytes()

    def answer(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return Route(f"/static/{name}", answer)


def _bokehjs(_: Request) -> Response:
    # Its address carries the version, so a browser need never ask again.
    headers = {"cache-control": _FOREVER}
    return FileResponse(bokehjs_path(), media_type="text/javascript", headers=headers)
