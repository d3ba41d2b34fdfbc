"""The web application: the run's API, the view stream, and the first page."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from aegir_adapters.web import page
from aegir_adapters.web.overview import OverviewFeed
from aegir_adapters.web.plots import BOKEH_VERSION, Scheme, overview_item
from aegir_adapters.web.record_stream import RecordStream
from aegir_adapters.web.response import Pace
from aegir_adapters.web.runs import read_run_table
from aegir_adapters.web.security import LOOPBACK, Gatekeeper, content_security_policy
from aegir_adapters.web.static_files import static_routes
from aegir_adapters.web.status import read_status
from aegir_adapters.web.stopping import Stopping, server_is_stopping
from aegir_stream.clock import SystemClock
from aegir_stream.config import P5Cfg
from aegir_stream.layout import RunDirectory
from aegir_stream.typing import Clock

__all__ = ["create_app"]

_OVERVIEW_URL = "api/view/overview/stream"
_NEVER_STORED = {"cache-control": "no-store"}


def create_app(
    run: P5Cfg | str | os.PathLike[str],
    *,
    allowed_hosts: Collection[str] = LOOPBACK,
    allowed_origins: Collection[str] = (),
    pace: Pace | None = None,
    should_stop: Callable[[], bool] = server_is_stopping,
) -> Starlette:
    """Return a web application that shows a run, live or long finished.

    Serve it alone (`serve`), or mount it under any path of a Starlette or FastAPI application. It
    needs nothing to be started and keeps nothing that a restart would lose.

    Args:
        run: configuration or directory of the run, which need not exist yet.
        allowed_hosts: names under which it may be asked; `"*"` where another server checks that.
        allowed_origins: other sites' origins whose pages may read the answers.
        pace: heartbeat and patience of the streams.
        should_stop: tells that the server stops, so that open streams end; `app.state.stopping`
            is the way to say so directly.
    """
    directory = _run_directory(run)
    stopping = Stopping(should_stop)
    pace = pace or Pace()
    feed = OverviewFeed(directory, stopping=stopping, pace=pace)
    records = RecordStream(directory, stopping=stopping, pace=pace)
    pages = _Pages(directory, feed, SystemClock())
    app = Starlette(
        routes=[
            Route("/", pages.first),
            Route("/live", pages.live),
            Route("/charts/{scheme}.json", pages.charts),
            Route("/api/p5/runs", pages.runs),
            Route("/api/p5/sae/stream", records.answer),
            Route(f"/{_OVERVIEW_URL}", feed.answer),
            *static_routes(),
        ],
        middleware=[
            Middleware(Gatekeeper, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)
        ],
        lifespan=_ending(stopping),
    )
    app.state.stopping = stopping
    return app


class _Pages:
    """What a browser asks for beside the streams."""

    def __init__(self, run: RunDirectory, feed: OverviewFeed, clock: Clock) -> None:
        self._run = run
        self._feed = feed
        self._clock = clock

    async def first(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = await self._render(
            "page.html",
            nonce=nonce,
            bokeh_version=BOKEH_VERSION,
            base_url=str(request.url.replace(query="")),
        )
        policy = {"content-security-policy": content_security_policy(nonce)}
        return HTMLResponse(html, headers=_NEVER_STORED | policy)

    async def live(self, _: Request) -> Response:
        return HTMLResponse(await self._render("live.html"), headers=_NEVER_STORED)

    async def charts(self, request: Request) -> Response:
        scheme: Scheme = "dark" if request.path_params["scheme"] == "dark" else "light"
        item = overview_item(
            self._feed.newest,
            scheme=scheme,
            data_url=_OVERVIEW_URL,
            layers=await anyio.to_thread.run_sync(_hooked_layers, self._run),
        )
        return JSONResponse(item, headers=_NEVER_STORED)

    async def runs(self, _: Request) -> Response:
        table = await anyio.to_thread.run_sync(read_run_table, self._run)
        body = msgspec.json.encode(table)
        return Response(body, media_type="application/json", headers=_NEVER_STORED)

    async def _render(self, template: str, **context: str) -> str:
        status = await anyio.to_thread.run_sync(self._status)
        table = await anyio.to_thread.run_sync(read_run_table, self._run)
        return page.render(template, status=status, table=table, **context)

    def _status(self) -> page.Status:
        return read_status(self._run, now=self._clock.time())


def _run_directory(run: P5Cfg | str | os.PathLike[str]) -> RunDirectory:
    return RunDirectory(run) if isinstance(run, P5Cfg) else RunDirectory.at(os.fspath(run))


def _hooked_layers(run: RunDirectory) -> list[int]:
    """Return the layers that the manifest names; none where it does not say."""
    try:
        return msgspec.convert(run.read_manifest().get("layers", []), list[int])
    except (OSError, msgspec.MsgspecError):
        return []


def _ending(stopping: Stopping) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        stopping.begin()
        yield
        stopping.stop()

    return lifespan
