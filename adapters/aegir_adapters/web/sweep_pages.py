"""The pages of a run's patch sweeps: all of them, each as it fills, and a form that starts one."""

from __future__ import annotations

import re
from typing import Any

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from aegir_adapters.web import drawing
from aegir_adapters.web.form_body import read_body
from aegir_adapters.web.heat_map import HATCH, STYLE
from aegir_adapters.web.live import LookLive
from aegir_adapters.web.lookout import shown
from aegir_adapters.web.page import Page
from aegir_adapters.web.response import EventStream, Pace
from aegir_adapters.web.security import NEVER_STORED
from aegir_adapters.web.stopping import Stopping
from aegir_adapters.web.sweep_form import HOOKS, METRICS, Form, form_of, read_form
from aegir_adapters.web.sweep_gate import SweepGate
from aegir_adapters.web.sweep_order import SweepOrder
from aegir_adapters.web.sweep_shelf import SweepShelf
from aegir_adapters.web.sweep_stream import GOES_ON, drawn_events, line_events, place_of
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_reader import SweepReader
from aegir_stream.typing import Clock

__all__ = ["SweepPages"]

_NUMBER = re.compile(r"\d{1,6}")


class SweepPages:
    """Shows the sweeps of one run, and starts them where something was given that does.

    Args:
        run: the run directory; it need not exist yet.
        clock: tells how long ago things were.
        look_live: tells of the live viewer of the run.
        stopping: ends open streams.
        pace: heartbeat and patience of the streams.
        gate: starts sweeps.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        clock: Clock,
        look_live: LookLive,
        stopping: Stopping,
        pace: Pace,
        gate: SweepGate,
    ) -> None:
        self._run = run
        self._look_live = look_live
        self._stopping = stopping
        self._pace = pace
        self._gate = gate
        self._shelf = SweepShelf(run, clock=clock)

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/sweeps", self._all, methods=["GET"]),
            Route("/sweeps", self._start, methods=["POST"]),
            Route("/sweeps.json", self._all_json),
            Route("/sweeps/stop", self._stop, methods=["POST"]),
            Route("/sweeps/{sweep}.json", self._one_json),
            Route("/sweeps/{sweep}/stream", self._stream),
            Route("/sweeps/{sweep}", self._one),
        ]

    # -- all of them -------------------------------------------------------------------------------

    async def _all(self, request: Request) -> Response:
        return drawing.answer(request, await self._list())

    async def _all_json(self, _: Request) -> Response:
        listed = await anyio.to_thread.run_sync(self._listed)
        return _json({"status": "active", **listed})

    async def _list(self, form: Form | None = None) -> Page:
        listed = await anyio.to_thread.run_sync(self._listed)
        starting = listed["starting"]
        if form is None and starting and starting.error:
            form = form_of(starting.order, starting.error)
        seen = await self._look_live()
        return Page.of(
            "sweeps.html",
            root="",
            name=shown(self._run.root.name) or shown(str(self._run.root)),
            path=shown(str(self._run.root)),
            viewer_address=seen.address if seen else None,
            form=form or Form(order=starting.order if starting else SweepOrder()),
            hooks=HOOKS,
            metrics=METRICS,
            **listed,
        )

    def _listed(self) -> dict[str, Any]:
        return {
            "sweeps": self._shelf.rows(),
            "starting": self._gate.look(),
            "refusal": self._gate.closed(),
            "checkpoints": self._checkpoints(),
        }

    def _checkpoints(self) -> list[str]:
        try:
            return [checkpoint.name for checkpoint in reversed(self._run.checkpoints())]
        except OSError:
            return []

    # -- one of them -------------------------------------------------------------------------------

    async def _one(self, request: Request) -> Response:
        name, pair = request.path_params["sweep"], _pair(request)
        found = await anyio.to_thread.run_sync(lambda: self._shelf.shown(name, pair=pair))
        if found is None:
            return _unknown(request)
        page = Page.of(
            "sweep.html",
            root="../",
            name=shown(self._run.root.name) or shown(str(self._run.root)),
            path=shown(str(self._run.root)),
            sweep=found,
            style=STYLE,
            hatch=HATCH,
            goes_on=found.row.status in GOES_ON,
        )
        return drawing.answer(request, page)

    async def _one_json(self, request: Request) -> Response:
        reader = await self._read(request)
        if reader is None:
            return _unknown(request)
        grids = reader.grids
        return _json(
            {
                "sweep": reader.sweep,
                "status": reader.status(),
                "started": grids.started,
                "cells": list(grids.cells.values()),
                "ended": grids.ended,
                "skipped_lines": reader.skipped,
            }
        )

    async def _stream(self, request: Request) -> Response:
        reader = await anyio.to_thread.run_sync(self._shelf.reader, request.path_params["sweep"])
        if reader is None:
            return _unknown(request)
        if "drawn" in request.query_params:
            return self._events(drawn_events(reader, pair=_pair(request)))
        after = place_of(request.headers.get("last-event-id"))
        if after and await anyio.to_thread.run_sync(_has_all, self._shelf, reader.sweep, after):
            # What tells a browser not to connect again.
            return Response(status_code=204)
        return self._events(line_events(reader, after=after))

    def _events(self, events: Any) -> EventStream:
        return EventStream(events, stopping=self._stopping, pace=self._pace)

    async def _read(self, request: Request) -> SweepReader | None:
        return await anyio.to_thread.run_sync(_read, self._shelf, request.path_params["sweep"])

    # -- starting one ------------------------------------------------------------------------------

    async def _start(self, request: Request) -> Response:
        refused = await self._gate.refused(request)
        if refused is not None:
            return refused
        body = await read_body(request)
        if isinstance(body, Response):
            return body
        form = read_form(body, await anyio.to_thread.run_sync(self._checkpoints))
        if not form.errors:
            error = await anyio.to_thread.run_sync(self._gate.start, form.order)
            form = form_of(form.order, error) if error else form
        if form.errors:
            return drawing.answer(request, await self._list(form), status_code=422)
        return self._gate.go_on("sweeps")

    async def _stop(self, request: Request) -> Response:
        refused = await self._gate.refused(request)
        if refused is not None:
            return refused
        await anyio.to_thread.run_sync(self._gate.stop)
        return self._gate.go_on("../sweeps")


def _pair(request: Request) -> int | None:
    """Return the number of the pair that is asked for; `None` for their mean."""
    text = request.query_params.get("pair", "")
    return int(text) if _NUMBER.fullmatch(text) else None


def _read(shelf: SweepShelf, sweep: str) -> SweepReader | None:
    reader = shelf.reader(sweep)
    if reader is not None:
        reader.poll()
    return reader


def _has_all(shelf: SweepShelf, sweep: str, after: int) -> bool:
    """Tell whether a client that has so many events has all there will be."""
    reader = shelf.reader(sweep)
    return reader is not None and len(reader.poll()) <= after and reader.status() not in GOES_ON


def _json(content: Any) -> Response:
    return Response(
        msgspec.json.encode(content), media_type="application/json", headers=NEVER_STORED
    )


def _unknown(request: Request) -> Response:
    error = f"There is no sweep `{request.path_params['sweep']}` of this run."
    return JSONResponse({"error": error}, status_code=404, headers=NEVER_STORED)
