"""The Data page of a run: its step metrics, what is healthy, and what raises an alarm."""

from __future__ import annotations

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from aegir_adapters.web import drawing
from aegir_adapters.web.live import LookLive, SeenLive
from aegir_adapters.web.lookout import shown
from aegir_adapters.web.metrics_reader import MetricsReader
from aegir_adapters.web.page import Page
from aegir_adapters.web.panels import Panels, no_panels, panels_of
from aegir_adapters.web.security import NEVER_STORED
from aegir_adapters.web.watches import FRESH_S
from aegir_stream.layout import RunDirectory
from aegir_stream.liveness import Status
from aegir_stream.typing import Clock

__all__ = ["Data", "DataPage"]


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /data.json`.

    Attributes:
        status: whether the run goes on: `active`, `finished`, `crashed` or `stalled`.
        badge: the word for it; `waiting` for a run that is not there yet.
        panels: its metrics.
    """

    status: Status
    badge: str
    panels: Panels


class DataPage:
    """Shows the metrics of one run. Belongs to one event loop.

    Args:
        run: the run directory; it need not exist yet.
        clock: tells what is fresh.
        look_live: tells whether the run goes on.
    """

    def __init__(self, run: RunDirectory, *, clock: Clock, look_live: LookLive) -> None:
        self._run = run
        self._clock = clock
        self._look_live = look_live
        self._reader = MetricsReader(run)
        self._turn = anyio.Lock()
        self._panels = no_panels()
        self._looked_s: float | None = None

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [Route("/data", self._page), Route("/data.json", self._data)]

    async def _page(self, request: Request) -> Response:
        seen = await self._look_live()
        page = Page.of(
            "data.html",
            root="",
            name=shown(self._run.root.name) or shown(str(self._run.root)),
            path=shown(str(self._run.root)),
            data=await self._look(seen),
            viewer_address=seen.address if seen else None,
        )
        return drawing.answer(request, page)

    async def _data(self, _: Request) -> Response:
        body = msgspec.json.encode(await self._look(await self._look_live()))
        return Response(body, media_type="application/json", headers=NEVER_STORED)

    async def _look(self, seen: SeenLive | None) -> Data:
        """Return what there is to show, by a look of our own or one that was just made."""
        async with self._turn:
            if not self._is_fresh():
                self._panels = await anyio.to_thread.run_sync(self._drawn)
                self._looked_s = self._clock.monotonic()
        status: Status = seen.live.status if seen else "active"
        badge = seen.live.badge if seen else "waiting"
        return Data(status=status, badge=badge, panels=self._panels)

    def _drawn(self) -> Panels:
        if not self._reader.poll():
            return self._panels
        return panels_of(self._reader.table, skipped=self._reader.skipped)

    def _is_fresh(self) -> bool:
        return self._looked_s is not None and self._clock.monotonic() - self._looked_s < FRESH_S
