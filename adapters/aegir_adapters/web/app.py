"""The web application: a run or many of them, their viewers, their API and their streams."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from aegir_adapters.web.live import SeenLive
from aegir_adapters.web.lookout import Lookout
from aegir_adapters.web.response import Pace
from aegir_adapters.web.sae_pages import SAEPages
from aegir_adapters.web.security import LOOPBACK, Gatekeeper
from aegir_adapters.web.stopping import Stopping, server_is_stopping
from aegir_adapters.web.sweep_starting import SweepStarter
from aegir_adapters.web.viewer import Viewer, not_found, run_address
from aegir_stream.clock import SystemClock
from aegir_stream.config import P5Cfg
from aegir_stream.layout import RunDirectory
from aegir_stream.standing import Costs
from aegir_stream.typing import Clock

__all__ = ["create_app"]


def create_app(
    run: P5Cfg | str | os.PathLike[str],
    *,
    allowed_hosts: Collection[str] = LOOPBACK,
    allowed_origins: Collection[str] = (),
    pace: Pace | None = None,
    should_stop: Callable[[], bool] = server_is_stopping,
    costs: Costs | None = None,
    clock: Clock | None = None,
    sweep_starter: SweepStarter | None = None,
) -> Starlette:
    """Return a web application that shows a run, or all runs under a root, live or long finished.

    Serve it alone (`serve`), or mount it under any path of a Starlette or FastAPI application. It
    needs nothing to be started and keeps nothing that a restart would lose.

    Args:
        run: configuration or directory of the run, or of a root with many, as `Catalog` finds them.
            It need not exist yet.
        allowed_hosts: names under which it may be asked; `"*"` where another server checks that.
        allowed_origins: other sites' origins whose pages may read the answers.
        pace: heartbeat and patience of the streams.
        should_stop: tells that the server stops, so that open streams end; `app.state.stopping`
            is the way to say so directly.
        costs: tells what a run has cost and how often a model was called; the keys `cost` and
            `calls` of its progress feed do if absent. Called from worker threads.
        clock: tells how long ago things were; the system's if absent.
        sweep_starter: starts the patch sweeps that are asked for on a page; none are if absent.
    """
    directory = RunDirectory(run) if isinstance(run, P5Cfg) else RunDirectory.at(os.fspath(run))
    clock = clock or SystemClock()
    stopping = Stopping(should_stop)
    lookout = Lookout(directory, clock=clock, costs=costs)
    sae_pages = partial(
        SAEPages,
        clock=clock,
        stopping=stopping,
        pace=pace or Pace(),
        starter=sweep_starter,
    )
    viewer = Viewer(lookout, clock=clock, sae_pages=sae_pages)

    async def look_live() -> SeenLive | None:
        known = await lookout.root_run()
        return SeenLive(run_address(known), await lookout.live(known)) if known else None

    of_root = sae_pages(directory, look_live=look_live)

    async def first(request: Request) -> Response:
        has_many = await lookout.root_run() is None and await lookout.has_runs()
        return await (viewer.overview(request) if has_many else of_root.first(request))

    app = Starlette(
        routes=[*of_root.routes(first), *viewer.routes()],
        middleware=[
            Middleware(Gatekeeper, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)
        ],
        exception_handlers={404: not_found},
        lifespan=_ending(stopping),
    )
    app.state.stopping = stopping
    return app


def _ending(stopping: Stopping) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        stopping.begin()
        yield
        stopping.stop()

    return lifespan
