"""A sweep as server-sent events: its lines as they are written, or what changes on its page."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec

from aegir_adapters.web import sse
from aegir_adapters.web.heat_map import CellMark, HeatMap, legend
from aegir_adapters.web.sweep_shown import BADGES
from aegir_stream import codec
from aegir_stream.sweep_events import SweepEvent
from aegir_stream.sweep_reader import SweepReader, SweepStatus
from aegir_stream.views import SweepGrids, scale_of

__all__ = ["GOES_ON", "drawn_events", "line_events", "place_of"]

GOES_ON: Final[frozenset[SweepStatus]] = frozenset({"running", "silent"})
"""What may bring more cells."""

_LINES_INTERVAL_S = 0.1
_DRAWN_INTERVAL_S = 0.25
_PLACE = re.compile(r"\d{1,15}")


def place_of(last_event_id: str | None) -> int:
    """Return how many events a client has; 0 for what is no place."""
    text = last_event_id or ""
    return int(text) if _PLACE.fullmatch(text) else 0


async def line_events(reader: SweepReader, *, after: int) -> AsyncGenerator[bytes, None]:
    """Yield the events of a sweep until no more will come, and `status` if it says no end.

    A client that comes back is sent what it has not had; a cell that comes twice counts once.

    Args:
        reader: reads the sweep, from its beginning.
        after: how many events the client has.
    """
    sent = 0
    while True:
        events, status = await anyio.to_thread.run_sync(_look, reader)
        fresh = events[max(0, after - sent) :]
        first = sent + len(events) - len(fresh) + 1
        sent += len(events)
        framed = (_framed(event, at) for at, event in enumerate(fresh, start=first))
        for chunk in sse.in_chunks(framed):
            yield chunk
        if status not in GOES_ON:
            if reader.grids.ended is None:
                yield sse.event(msgspec.json.encode({"status": status}), name="status")
            return
        await anyio.sleep(_LINES_INTERVAL_S)


async def drawn_events(
    reader: SweepReader, *, pair: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield what is different on the page of a sweep, and at last `over`.

    Args:
        reader: reads the sweep, from its beginning.
        pair: which of its pairs the page shows; their mean if absent.
    """
    page = _Page()
    while True:
        events, status = await anyio.to_thread.run_sync(_look, reader)
        if events or status not in GOES_ON:
            draw = partial(_drawn, page, reader.grids, status, pair)
            yield sse.event(await anyio.to_thread.run_sync(draw), name="drawn")
        if status not in GOES_ON:
            yield sse.event(msgspec.json.encode({"status": status}), name="over")
            return
        await anyio.sleep(_DRAWN_INTERVAL_S)


class _Page:
    """What one page shows, as far as it was told."""

    def __init__(self) -> None:
        self._marks: dict[str, CellMark] = {}
        self._legend = ""

    def changes(self, grids: SweepGrids, status: SweepStatus) -> bytes:
        """Return what is different: of elements by their ids, attributes and texts."""
        started = grids.started
        maps = [HeatMap(grids, started, at) for at in range(len(started.hooks))] if started else []
        marks = {name: mark for one in maps for name, mark in one.marks().items()}
        fresh = {name: mark for name, mark in marks.items() if self._marks.get(name) != mark}
        self._marks = marks
        told = legend(scale_of(grids)) if started else ""
        fresh_legend, self._legend = told if told != self._legend else "", told
        frames: dict[str, Any] = {
            name: {"x": x, "y": y} for name, x, y in filter(None, (one.best() for one in maps))
        }
        return msgspec.json.encode(
            {
                "marks": {name: [m.kind, m.fill, m.title] for name, m in fresh.items()},
                "frames": frames,
                "said": {f"said-{at}": one.said() for at, one in enumerate(maps)},
                "legend": fresh_legend,
                "cells": len(grids.cells),
                "status": status,
                "badge": BADGES[status],
            }
        )


def _drawn(page: _Page, grids: SweepGrids, status: SweepStatus, pair: int | None) -> bytes:
    # A pair that is not there yet has nothing to be drawn.
    alone = pair is not None and pair < grids.pairs
    return page.changes(grids.pair(pair) if alone and pair is not None else grids, status)


def _look(reader: SweepReader) -> tuple[list[SweepEvent], SweepStatus]:
    """Return what is new, and the status; nothing comes behind one that is final."""
    events = reader.poll()
    status = reader.status()
    if status == "died":
        # It may have written between the two looks.
        events += reader.poll()
        status = reader.status()
    return events, status


def _framed(event: SweepEvent, number: int) -> bytes:
    kind = str(event.__struct_config__.tag)
    return sse.event(codec.encode(event).rstrip(b"\n"), name=kind, cursor=str(number))
