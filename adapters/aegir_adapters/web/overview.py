"""What the charts of the first page are folded from, and the stream that feeds them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aegir_adapters.web import sse
from aegir_adapters.web.marks import HeatCell, Marks, RewardPoint, no_marks, table_of_marks
from aegir_adapters.web.response import EventStream, Pace
from aegir_adapters.web.sharing import WhileWanted
from aegir_adapters.web.stopping import Stopping
from aegir_stream.events import GRPOMetrics, PassName, Progress, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.manifest import look_at_manifest
from aegir_stream.replay import follow
from aegir_stream.views import Heatmap, HeatmapView, RunState, RunStateView

__all__ = ["Overview", "OverviewFeed", "OverviewView", "marks_of"]

_SHORTEST_INTERVAL_S = 0.2


class Overview(msgspec.Struct):
    """How hard the layers fired, and what the run earned."""

    heat: Heatmap
    run: RunState


class OverviewView:
    """Folds records of one forward pass, metrics and progress into an `Overview`."""

    streams = (*HeatmapView.streams, *RunStateView.streams)

    def __init__(self, *, pass_: PassName = "loss") -> None:
        self._heat = HeatmapView(pass_=pass_)
        self._run = RunStateView()

    def initial(self) -> Overview:
        """Return an overview of nothing."""
        return Overview(heat=self._heat.initial(), run=self._run.initial())

    def fold(
        self, state: Overview, events: Iterable[SAELogRecord | GRPOMetrics | Progress]
    ) -> Overview:
        """Hand every event to the view that it is for."""
        records: list[SAELogRecord] = []
        others: list[GRPOMetrics | Progress] = []
        for event in events:
            if isinstance(event, SAELogRecord):
                records.append(event)
            else:
                others.append(event)
        return Overview(
            heat=self._heat.fold(state.heat, records), run=self._run.fold(state.run, others)
        )


def marks_of(overview: Overview) -> Marks:
    """Return the table that the charts draw. Pure."""
    cells = [
        HeatCell(step, layer, cell.records, cell.top_activation)
        for layer, steps in overview.heat.layers.items()
        for step, cell in steps.items()
    ]
    points = {step: RewardPoint(step, score) for step, score in overview.run.curve}
    points |= {
        step: RewardPoint(step, metrics.reward_mean, metrics.reward_std or 0.0)
        for step, metrics in overview.run.metrics.items()
        if metrics.reward_mean is not None
    }
    return table_of_marks(cells, list(points.values()))


class _Newest:
    """The newest marks, and their event; readers skip what they are too slow for."""

    def __init__(self) -> None:
        self.marks = no_marks()
        self._event = b""
        self._number = 0
        self._news = anyio.Event()

    def publish(self, marks: Marks, event: bytes) -> None:
        self.marks, self._event = marks, event
        self._number += 1
        news, self._news = self._news, anyio.Event()
        news.set()

    async def after(self, number: int) -> tuple[int, bytes]:
        while self._number == number:
            await self._news.wait()
        return self._number, self._event


class OverviewFeed:
    """Folds a run once for everybody who looks at the page, while somebody does.

    Args:
        run: the run directory; it need not exist yet.
        stopping: ends open answers.
        pace: heartbeat and patience.
    """

    def __init__(self, run: RunDirectory, *, stopping: Stopping, pace: Pace) -> None:
        self._run = run
        self._stopping = stopping
        self._pace = pace
        self._folding = WhileWanted(_Newest, self._fold)

    @property
    def newest(self) -> Marks:
        """What the charts show now; nothing while nobody looks."""
        worker = self._folding.worker
        return worker.marks if worker else no_marks()

    async def answer(self, _: Request) -> Response:
        """Return the stream of marks: each event replaces what came before."""
        return EventStream(self._events(), stopping=self._stopping, pace=self._pace)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        async with self._folding.use() as newest:
            number = 0
            while True:
                number, event = await newest.after(number)
                yield event

    async def _fold(self, newest: _Newest) -> None:
        view = OverviewView(pass_=await anyio.to_thread.run_sync(_first_pass, self._run))
        async with aclosing(follow(self._run, view)) as replays:
            async for replayed in replays:
                newest.publish(*await anyio.to_thread.run_sync(_drawn, replayed.state))
                await anyio.sleep(_SHORTEST_INTERVAL_S)


def _first_pass(run: RunDirectory) -> PassName:
    """Return the pass whose records are drawn; a run without a manifest records the loss pass."""
    try:
        passes = msgspec.convert(look_at_manifest(run).get("passes", []), list[PassName])
    except msgspec.ValidationError:
        passes = []
    return "loss" if "loss" in passes or not passes else passes[0]


def _drawn(overview: Overview) -> tuple[Marks, bytes]:
    marks = marks_of(overview)
    return marks, sse.event(msgspec.json.encode(marks))
