"""The live viewer: the list of runs, the page of each, and `live.json`, which keeps it fresh."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import Receive, Scope, Send

from aegir_adapters.web import drawing
from aegir_adapters.web.amounts import age, count, number
from aegir_adapters.web.completion_shelf import has_completions
from aegir_adapters.web.live import BADGES, LookLive, SeenLive
from aegir_adapters.web.lookout import KnownRun, Lookout, RunList, shown
from aegir_adapters.web.metrics_reader import has_metrics
from aegir_adapters.web.page import Page
from aegir_adapters.web.sae_pages import SAEPages
from aegir_adapters.web.security import NEVER_STORED
from aegir_adapters.web.sparkline import sparkline
from aegir_adapters.web.sweep_shelf import has_sweeps
from aegir_stream.layout import RunDirectory
from aegir_stream.standing import RunStanding
from aegir_stream.typing import Clock

__all__ = ["MakeSAEPages", "Row", "Viewer", "not_found", "run_address"]

_RUN = "/setup/{label}/run/{idx}"
_MOST_SAE_PAGES = 64


class MakeSAEPages(Protocol):
    """Makes the pages of one run."""

    def __call__(self, run: RunDirectory, *, look_live: LookLive) -> SAEPages:
        """Return the pages of a run."""
        ...


class Viewer:
    """Answers for the list of runs and for the page of each.

    Args:
        lookout: finds and watches the runs.
        clock: tells how old things are.
        sae_pages: makes the pages of one run, of which a few are kept.
    """

    def __init__(self, lookout: Lookout, *, clock: Clock, sae_pages: MakeSAEPages) -> None:
        self._lookout = lookout
        self._clock = clock
        self._each = _EachRun(lookout, sae_pages)

    def routes(self) -> list[BaseRoute]:
        """Return the routes, but for the overview, which shares its address with a first page."""
        return [
            Route("/setup/{label}", self._setup),
            Route(_RUN, self._run),
            Route(f"{_RUN}/live.json", self._live),
            Mount(f"{_RUN}/sae", app=self._each),
        ]

    async def overview(self, request: Request) -> Response:
        """Answer with the list of all runs."""
        listed = await self._lookout.page(page=_page_number(request))
        return await self._list(request, listed, root="", heading="Runs", label=None)

    async def _setup(self, request: Request) -> Response:
        label = request.path_params["label"]
        listed = await self._lookout.page(label=label, page=_page_number(request))
        return await self._list(request, listed, root="../", heading=label, label=label)

    async def _list(
        self,
        request: Request,
        listed: RunList | None,
        *,
        root: str,
        heading: str,
        label: str | None,
    ) -> Response:
        if listed is None:
            return _unknown(f"There is no setup `{heading}` here.")
        where = {"root": root, "heading": heading, "label": label}
        # Rows are many, and are drawn where they keep nobody waiting.
        return await anyio.to_thread.run_sync(
            lambda: drawing.answer(request, self._page_of(listed, where))
        )

    def _page_of(self, listed: RunList, where: dict[str, str | None]) -> Page:
        now = self._clock.time()
        rows = [_row(*entry, now=now) for entry in listed.entries]
        names = ("page", "pages", "runs", "setups")
        counts = {name: getattr(listed, name) for name in names}
        return Page.of("runs.html", rows=rows, listed=counts, **where)

    async def _run(self, request: Request) -> Response:
        known = await self._known(request)
        if known is None:
            return _unknown_run(request)
        live = await self._lookout.live(known)
        page = Page.of(
            "viewer.html",
            root="../../../",
            run={"label": known.label, "index": known.index},
            name=shown(known.run.root.name),
            path=shown(str(known.run.root)),
            setup_address=f"../../{quote(known.label, safe='')}",
            live=live,
            badge=live.badge,
            is_recorded=await anyio.to_thread.run_sync(_is_recorded, known.run),
            has_data=await anyio.to_thread.run_sync(has_metrics, known.run),
            has_completions=await anyio.to_thread.run_sync(has_completions, known.run),
            has_sweeps=await anyio.to_thread.run_sync(has_sweeps, known.run),
        )
        return drawing.answer(request, page)

    async def _live(self, request: Request) -> Response:
        known = await self._known(request)
        if known is None:
            return _unknown_run(request)
        body = msgspec.json.encode(await self._lookout.live(known))
        return Response(body, media_type="application/json", headers=NEVER_STORED)

    async def _known(self, request: Request) -> KnownRun | None:
        return await self._lookout.find(request.path_params["label"], request.path_params["idx"])


class _EachRun:
    """The charts and streams of each run, made when somebody asks for them (ASGI)."""

    def __init__(self, lookout: Lookout, sae_pages: MakeSAEPages) -> None:
        self._lookout = lookout
        self._sae_pages = sae_pages
        self._kept: OrderedDict[Path, Router] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        params = scope["path_params"]
        known = await self._lookout.find(params["label"], params["idx"])
        answer = self._router(known) if known else _unknown_run(Request(scope))
        await answer(scope, receive, send)

    def _router(self, known: KnownRun) -> Router:
        router = self._kept.pop(known.run.root, None) or self._made(known)
        self._kept[known.run.root] = router
        while len(self._kept) > _MOST_SAE_PAGES:
            self._kept.popitem(last=False)
        return router

    def _made(self, known: KnownRun) -> Router:
        async def look_live() -> SeenLive:
            return SeenLive(f"../../{known.index}", await self._lookout.live(known))

        return Router(self._sae_pages(known.run, look_live=look_live).routes())


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list of runs; `curve` is an `<svg>` element, or nothing."""

    label: str
    index: int
    name: str
    setup_address: str
    address: str
    status: str
    badge: str
    iteration: str
    best: str
    cost: str
    curve: str
    written: str


def run_address(known: KnownRun) -> str:
    """Return where a run's viewer is, relative to the root of the application."""
    return f"{_setup_address(known)}/run/{known.index}"


def _setup_address(known: KnownRun) -> str:
    return f"setup/{quote(known.label, safe='')}"


def _row(known: KnownRun, standing: RunStanding | None, written_s: float, *, now: float) -> Row:
    iteration = standing.iteration if standing else None
    total = f" / {standing.total:,}" if standing and standing.total is not None else ""
    return Row(
        label=known.label,
        index=known.index,
        name=shown(known.run.root.name),
        setup_address=_setup_address(known),
        address=run_address(known),
        status=standing.status if standing else "",
        badge=BADGES[standing.status] if standing else "being read",
        iteration=count(iteration) + total,
        best=number(standing.best if standing else None),
        cost=number(standing.cost if standing else None),
        curve=sparkline(standing.curve if standing else ()),
        written=age(now - written_s if written_s else None),
    )


def _is_recorded(run: RunDirectory) -> bool:
    """Tell whether a run has more to show than its progress."""
    try:
        return bool(run.checkpoints() or run.lanes("sae_features") or run.lanes("grpo_metrics"))
    except OSError:
        return False


def _page_number(request: Request) -> int:
    text = request.query_params.get("page", "")
    return int(text) if re.fullmatch("[0-9]{1,8}", text) else 1


def _unknown_run(request: Request) -> Response:
    label, index = (request.path_params[name] for name in ("label", "idx"))
    return _unknown(f"There is no run `{index}` of a setup `{label}` here.")


def _unknown(error: str) -> Response:
    return JSONResponse({"error": error}, status_code=404, headers=NEVER_STORED)


def not_found(request: Request, _: Exception) -> Response:
    """Answer for an address that means nothing."""
    return _unknown(f"There is nothing at `{request.url.path}`.")
