"""Pages and charts as answers: drawn, or undrawn for a server that draws them itself.

A development server of another checkout draws with its own templates, so it asks for what the
pages say. Everything that is drawn passes here, so every page can be had either way.
"""

from __future__ import annotations

import secrets
from typing import Any, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from aegir_adapters.web.page import Page, Templates
from aegir_adapters.web.plots import BOKEH_VERSION, Charts, overview_item
from aegir_adapters.web.security import NEVER_STORED, content_security_policy

__all__ = ["CHARTS_TYPE", "PAGE_TYPE", "Content", "answer", "draw", "html_response"]

PAGE_TYPE = "application/vnd.aegir.page+json"
CHARTS_TYPE = "application/vnd.aegir.charts+json"
"""Media types of what is not drawn: who accepts them draws."""

Content: TypeAlias = Page | Charts

_TYPES: dict[type[Any], str] = {Page: PAGE_TYPE, Charts: CHARTS_TYPE}
_HEADERS = NEVER_STORED | {"vary": "Accept"}
_TEMPLATES = Templates()


def answer(request: Request, content: Content, *, status_code: int = 200) -> Response:
    """Return the content itself where the request accepts its type, else what is drawn from it."""
    media_type = _TYPES[type(content)]
    if media_type not in _accepted(request):
        return draw(request, content, status_code=status_code)
    body = msgspec.json.encode(content)
    return Response(body, status_code, media_type=media_type, headers=_HEADERS)


def draw(
    request: Request,
    content: Content,
    *,
    templates: Templates = _TEMPLATES,
    status_code: int = 200,
) -> Response:
    """Return a page as HTML, or charts as an item for BokehJS.

    Args:
        request: what asks for it.
        content: what it says.
        templates: show pages.
        status_code: of a page.

    Raises:
        jinja2.TemplateError: the template cannot show the page.
    """
    if isinstance(content, Charts):
        return JSONResponse(overview_item(content), headers=_HEADERS)
    nonce = secrets.token_urlsafe(16)
    base_url = str(request.url.replace(query=""))
    html = templates.html(content, nonce=nonce, base_url=base_url, bokeh_version=BOKEH_VERSION)
    return html_response(html, nonce=nonce, status_code=status_code)


def html_response(html: str, *, nonce: str, status_code: int = 200) -> Response:
    """Return a page, with the policy that lets it run the scripts with the nonce and no others."""
    policy = {"content-security-policy": content_security_policy(nonce)}
    return HTMLResponse(html, status_code, headers=_HEADERS | policy)


def _accepted(request: Request) -> set[str]:
    types = request.headers.get("accept", "").split(",")
    return {one.partition(";")[0].strip().lower() for one in types}
