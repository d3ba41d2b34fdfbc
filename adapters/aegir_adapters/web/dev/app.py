"""The pages of this checkout, with the data of a gateway in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import jinja2
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from aegir_adapters.web.dev.changes import Changes
from aegir_adapters.web.dev.gateway import (
    Gateway,
    GatewayError,
    PathError,
    gateway_url,
    media_type_of,
)
from aegir_adapters.web.dev.passing import EVENTS, Absence, Passing
from aegir_adapters.web.dev.problems import (
    problem_of_code,
    problem_of_gateway,
    problem_of_post,
    problem_of_template,
)
from aegir_adapters.web.dev.reloading import RELOAD_SCRIPT, ReloadingTemplates
from aegir_adapters.web.drawing import CHARTS_TYPE, PAGE_TYPE, Content, draw
from aegir_adapters.web.form_body import read_body
from aegir_adapters.web.page import TEMPLATES, Page, Templates
from aegir_adapters.web.plots import Charts
from aegir_adapters.web.security import (
    LOOPBACK,
    NEVER_STORED,
    Gatekeeper,
    comes_from_own_page,
)
from aegir_adapters.web.static_files import STATIC, send_bokehjs, static_names, static_response
from aegir_adapters.web.stopping import Stopping, server_is_stopping

__all__ = ["create_ui"]

_NOT_OURS = "Forms are taken from this server's own pages only"
_PUBLIC = (
    "This server can be reached by other machines and has no passwords, so it passes no forms on; "
    "use the gateway's own pages"
)

_CONTENTS: dict[str, type[Content]] = {PAGE_TYPE: Page, CHARTS_TYPE: Charts}


def create_ui(
    gateway: str,
    *,
    allowed_hosts: Collection[str] = LOOPBACK,
    templates: Path = TEMPLATES,
) -> Starlette:
    """Return a web application that shows what a gateway serves in pages of its own.

    Templates, styles and scripts are read whenever they are needed, and open pages load themselves
    again when one of them changes. Everything that is no page comes from the gateway as it is. No
    run is read here. Forms of its own pages go to the gateway, unless others than this machine's
    users can reach this server: the gateway takes all that comes from it for theirs.

    Args:
        gateway: address of the gateway.
        allowed_hosts: names under which it may be asked; `"*"` for any.
        templates: directory of the templates.

    Raises:
        OptionError: `gateway` is no address of a server.
    """
    takes_forms = set(allowed_hosts) <= set(LOOPBACK)
    ui = _UI(gateway_url(gateway), templates=templates, takes_forms=takes_forms)
    app = Starlette(
        routes=ui.routes(),
        middleware=[Middleware(Gatekeeper, allowed_hosts=allowed_hosts)],
        exception_handlers={Exception: ui.failed},
        lifespan=ui.alive,
    )
    app.state.stopping = ui.stopping
    return app


class _UI:
    """Draws the pages, and passes the rest on.

    Args:
        address: address of the gateway.
        templates: directory of the templates.
        takes_forms: whether forms are passed on.
    """

    def __init__(self, address: str, *, templates: Path, takes_forms: bool) -> None:
        self.stopping = Stopping(server_is_stopping)
        self._gateway = Gateway(address)
        self._directory = templates
        self._takes_forms = takes_forms
        directories = (templates, STATIC, RELOAD_SCRIPT.parent)
        self._changes = Changes(directories, stopping=self.stopping)
        self._templates = ReloadingTemplates(templates, self._changes)
        # To load the answer to a form again is to send the form again.
        self._still_templates = Templates(templates, afresh=True)

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        bokehjs = "static/bokeh.min.js"
        return [
            Route("/.aegir/changes", self._changes.answer),
            Route("/.aegir/reload.js", _reload_script),
            # Pages name their files relative to themselves, so these lie at any depth.
            *(Route(f"{depth}/{bokehjs}", send_bokehjs) for depth in ("", "/{depth:path}")),
            *(Route(f"{depth}/static/{{name}}", _static) for depth in ("", "/{depth:path}")),
            Route("/{path:path}", self._proxy, methods=["GET"]),
            Route("/{path:path}", self._post, methods=["POST"]),
        ]

    @asynccontextmanager
    async def alive(self, _: Starlette) -> AsyncIterator[None]:
        """Watch the files and keep the connections while the server runs."""
        self.stopping.begin()
        unwatched = anyio.Event()
        async with self._gateway, anyio.create_task_group() as group:
            group.start_soon(self._changes.watch, unwatched)
            yield
            self.stopping.stop()
            unwatched.set()

    async def failed(self, request: Request, error: Exception) -> Response:
        """Answer where Python code of a page failed; the server logs the traceback."""
        problem = problem_of_code(error, templates=self._directory)
        return problem.response(request, version=self._changes.version())

    async def _proxy(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except PathError as error:
            return JSONResponse({"error": str(error)}, 400, headers=NEVER_STORED)
        except GatewayError as error:
            if error.away and EVENTS in request.headers.get("accept", ""):
                return Absence(str(error), stopping=self.stopping)
            problem = problem_of_gateway(error, self._gateway.address)
            return problem.response(request, version=self._changes.version())

    async def _post(self, request: Request) -> Response:
        """Pass a form on, once, if it is one of our own pages."""
        if not comes_from_own_page(request.headers):
            return JSONResponse({"error": _NOT_OURS}, 403, headers=NEVER_STORED)
        if not self._takes_forms:
            return JSONResponse({"error": _PUBLIC}, 403, headers=NEVER_STORED)
        body = await read_body(request)
        if isinstance(body, Response):
            return body
        try:
            return await self._answer(request, body=body)
        except PathError as error:
            return JSONResponse({"error": str(error)}, 400, headers=NEVER_STORED)
        except GatewayError as error:
            problem = problem_of_post(error, self._gateway.address)
            return problem.response(request, version=self._changes.version())

    async def _answer(self, request: Request, *, body: bytes | None = None) -> Response:
        answer = await self._gateway.ask(request, body=body)
        media_type = media_type_of(answer)
        if request.method == "GET" and media_type == "text/html":
            await answer.aclose()
            raise GatewayError(
                f"{self._gateway.address} answers with a finished page (status "
                f"{answer.status_code}), which leaves nothing to be drawn here",
                hint="Restart the gateway with a version that knows `aegir ui`",
            )
        if media_type not in _CONTENTS:
            return Passing(answer, gateway=self._gateway, stopping=self.stopping)
        content = await self._gateway.read(answer)
        return self._drawn(request, media_type, content, status_code=answer.status_code)

    def _drawn(
        self, request: Request, media_type: str, body: bytes, *, status_code: int
    ) -> Response:
        try:
            content: Content = msgspec.json.decode(body, type=_CONTENTS[media_type])
        except msgspec.DecodeError as error:
            raise GatewayError(
                f"{self._gateway.address} sends what is not a {media_type}: {error}",
                hint="Restart the gateway with the version of this checkout",
            ) from error
        try:
            posted = request.method == "POST"
            templates = self._still_templates if posted else self._templates
            return draw(request, content, templates=templates, status_code=status_code)
        except jinja2.TemplateError as error:
            # Charts have no template.
            page = content if isinstance(content, Page) else Page("", {})
            problem = problem_of_template(error, page, templates=self._directory)
            return problem.response(request, version=self._changes.version())


async def _reload_script(_: Request) -> Response:
    headers = {"cache-control": "no-cache"}
    return FileResponse(RELOAD_SCRIPT, media_type="text/javascript", headers=headers)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name in static_names():
        return static_response(name)
    error = f"There is no file `{name}` in {STATIC}."
    return JSONResponse({"error": error}, 404, headers=NEVER_STORED)
