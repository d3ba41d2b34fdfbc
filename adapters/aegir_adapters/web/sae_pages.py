"""The charts of one run, its checkpoints, metrics and record stream: the routes of a single run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from aegir_adapters.web import drawing
from aegir_adapters.web.completion_pages import CompletionPages
from aegir_adapters.web.completion_shelf import has_completions
from aegir_adapters.web.data_page import DataPage
from aegir_adapters.web.live import LookLive
from aegir_adapters.web.metrics_reader import has_metrics
from aegir_adapters.web.overview import OverviewFeed
from aegir_adapters.web.page import Page, Status
from aegir_adapters.web.plots import Charts, Scheme
from aegir_adapters.web.record_stream import RecordStream
from aegir_adapters.web.response import Pace
from aegir_adapters.web.runs import CheckpointRow, CheckpointTable, RunTable
from aegir_adapters.web.security import NEVER_STORED
from aegir_adapters.web.static_files import static_routes
from aegir_adapters.web.status import read_status
from aegir_adapters.web.stopping import Stopping
from aegir_adapters.web.sweep_gate import SweepGate
from aegir_adapters.web.sweep_pages import SweepPages
from aegir_adapters.web.sweep_shelf import has_sweeps
from aegir_adapters.web.sweep_starting import SweepStarter
from aegir_stream.layout import RunDirectory
from aegir_stream.manifest import look_at_manifest
from aegir_stream.typing import Clock

__all__ = ["SAEPages"]

_OVERVIEW_URL = "api/view/overview/stream"

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class SAEPages:
    """What a browser is told of one run beside its live viewer.

    Args:
        run: the run directory; it need not exist yet.
        clock: tells how old things are.
        stopping: ends open streams.
        pace: heartbeat and patience of the streams.
        look_live: tells of the live viewer of the run.
        starter: starts patch sweeps.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        clock: Clock,
        stopping: Stopping,
        pace: Pace,
        look_live: LookLive,
        starter: SweepStarter | None = None,
    ) -> None:
        self._run = run
        self._table = CheckpointTable(run)
        self._feed = OverviewFeed(run, stopping=stopping, pace=pace)
        self._records = RecordStream(run, stopping=stopping, pace=pace)
        self._data = DataPage(run, clock=clock, look_live=look_live)
        gate = SweepGate(run, starter)
        self._completions = CompletionPages(run, look_live=look_live, gate=gate)
        self._sweeps = SweepPages(
            run, clock=clock, look_live=look_live, stopping=stopping, pace=pace, gate=gate
        )
        self._clock = clock
        self._look_live = look_live

    def routes(self, first: Endpoint | None = None) -> list[BaseRoute]:
        """Return the routes.

        Args:
            first: answers for the first page in our place.
        """
        return [
            Route("/", first or self.first),
            Route("/live", self._live),
            Route("/charts/{scheme}.json", self._charts),
            *self._data.routes(),
            *self._completions.routes(),
            *self._sweeps.routes(),
            Route("/api/p5/runs", self._checkpoints),
            Route("/api/p5/sae/stream", self._records.answer),
            Route(f"/{_OVERVIEW_URL}", self._feed.answer),
            *static_routes(),
        ]

    async def first(self, request: Request) -> Response:
        """Answer with the first page."""
        return drawing.answer(request, await self._page("page.html"))

    async def _live(self, request: Request) -> Response:
        return drawing.answer(request, await self._page("live.html"))

    async def _charts(self, request: Request) -> Response:
        scheme: Scheme = "dark" if request.path_params["scheme"] == "dark" else "light"
        charts = Charts(
            marks=self._feed.newest,
            scheme=scheme,
            data_url=_OVERVIEW_URL,
            layers=await anyio.to_thread.run_sync(_hooked_layers, self._run),
        )
        return drawing.answer(request, charts)

    async def _checkpoints(self, _: Request) -> Response:
        table = await anyio.to_thread.run_sync(self._table.read)
        body = msgspec.json.encode(table)
        return Response(body, media_type="application/json", headers=NEVER_STORED)

    async def _page(self, template: str) -> Page:
        status = await anyio.to_thread.run_sync(self._status)
        table = await anyio.to_thread.run_sync(self._table.read)
        seen = await self._look_live()
        if seen and seen.live.iteration is not None and status.badge == "starting":
            # A job that is no trainer writes no metrics, and has long begun.
            status = msgspec.structs.replace(status, badge=seen.live.badge)
        return Page.of(
            template,
            status=status,
            table=_shown(table),
            has_data=await anyio.to_thread.run_sync(has_metrics, self._run),
            has_completions=await anyio.to_thread.run_sync(has_completions, self._run),
            has_sweeps=await anyio.to_thread.run_sync(has_sweeps, self._run),
            viewer_address=seen.address if seen else None,
        )

    def _status(self) -> Status:
        return read_status(self._run, now=self._clock.time())


def _shown(table: RunTable) -> dict[str, object]:
    return {"rows": list(map(_shown_row, table.rows)), "reason": table.reason or None}


def _shown_row(row: CheckpointRow) -> dict[str, object]:
    return {
        "step": row.step,
        "checkpoint": row.checkpoint,
        "records": row.n_sae_records,
        "run_id": str((row.metadata or {}).get("run_id", "")),
        "path": row.checkpoint_dir,
        "reason": row.reason or None,
    }


def _hooked_layers(run: RunDirectory) -> list[int]:
    """Return the layers that the manifest names; none where it does not say."""
    try:
        return msgspec.convert(look_at_manifest(run).get("layers", []), list[int])
    except msgspec.ValidationError:
        return []
