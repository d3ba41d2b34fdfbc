"""What a source hands out, as server-sent events. Pure."""

from __future__ import annotations

import msgspec

from aegir_adapters.web import sse
from aegir_adapters.web.parameters import StreamRequest
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import (
    Checkpoint,
    Closed,
    Corrupt,
    FellBehind,
    Gap,
    Idle,
    Note,
    Reset,
    Rewound,
    SourceSwitch,
    Stalled,
)

__all__ = ["render", "render_selected"]

_NAMES: dict[type[msgspec.Struct], str] = {
    SourceSwitch: "source",
    Checkpoint: "checkpoint",
    Idle: "idle",
    Gap: "gap",
    Note: "note",
    Corrupt: "corrupt",
    Reset: "reset",
    Rewound: "rewound",
    Stalled: "stalled",
    FellBehind: "fell_behind",
    Closed: "closed",
}
"""Event names; a delivery that is not here (`CaughtUp`) is nothing a client acts on."""


def render(delivery: Delivery) -> tuple[bytes, ...]:
    """Return everything in a delivery, in chunks for all clients without a filter."""
    if isinstance(delivery, Chunk):
        return tuple(sse.in_chunks(sse.record_events(delivery.records, delivery.cursors())))
    return _verdict(delivery)


def render_selected(delivery: Delivery, request: StreamRequest) -> tuple[bytes, ...]:
    """Return what one client asked for.

    The place behind records that were not asked for is sent too, so that a filtered client does
    not read them again when it comes back.
    """
    if not isinstance(delivery, Chunk):
        return _verdict(delivery)
    selected = request.selection.of(delivery)
    behind = delivery.after.text()
    if selected is None:
        return (sse.place(behind),)
    if request.batch:
        body = b"[" + b",".join(selected.records) + b"]"
        return (sse.event(body, cursor=behind),)
    events = sse.record_events(selected.records, selected.cursors())
    if selected.ends[-1] != delivery.ends[-1]:
        events.append(sse.place(behind))
    return tuple(sse.in_chunks(events))


def _verdict(delivery: msgspec.Struct) -> tuple[bytes, ...]:
    name = _NAMES.get(type(delivery))
    if name is None:
        return ()
    # Control lines carry their name once more, as the tag of their type.
    tagged = isinstance(delivery, Gap | Note)
    body = msgspec.structs.asdict(delivery) if tagged else delivery
    return (sse.event(msgspec.json.encode(body), name=name),)
