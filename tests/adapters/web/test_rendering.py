from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest

from aegir_adapters.web.parameters import StreamRequest
from aegir_adapters.web.rendering import render, render_selected
from aegir_stream.chunk import Chunk
from aegir_stream.codec import RecordHead
from aegir_stream.cursor import Cursor, Position
from aegir_stream.events import (
    CaughtUp,
    Closed,
    Corrupt,
    Gap,
    Idle,
    Reset,
    Rewound,
    SourceSwitch,
    Stalled,
)
from aegir_stream.selection import Selection


@pytest.mark.parametrize(
    ("delivery", "name", "body"),
    [
        (
            SourceSwitch(source="live", path="/run/live", verdict="resumed"),
            "source",
            {"source": "live", "path": "/run/live", "verdict": "resumed"},
        ),
        (Idle(reason="nothing yet"), "idle", {"reason": "nothing yet"}),
        (
            Gap(records=3, reason="disk full", first_step=2),
            "gap",
            {"records": 3, "reason": "disk full", "first_step": 2, "last_step": None},
        ),
        (
            Corrupt(path="p", offset=1, length=2, reason="no record"),
            "corrupt",
            {"path": "p", "offset": 1, "length": 2, "reason": "no record"},
        ),
        (Reset(path="p", reason="replaced"), "reset", {"path": "p", "reason": "replaced"}),
        (Rewound(attempt=2, to_step=50), "rewound", {"attempt": 2, "to_step": 50}),
        (Stalled(path="p", reason="EIO"), "stalled", {"path": "p", "reason": "EIO"}),
        (Closed(status="finished"), "closed", {"status": "finished"}),
    ],
)
def test_every_verdict_is_a_named_event(
    parse: Callable[[bytes], list[Any]], delivery: Any, name: str, body: dict[str, Any]
) -> None:
    """What happens between records reaches the client in the stream, filtered or not."""
    [event] = parse(b"".join(render(delivery)))

    assert event.name == name
    assert event.body == body
    assert render_selected(delivery, StreamRequest(batch=True)) == render(delivery)


def chunk(records: int) -> Chunk:
    """Return records of rank 1, at layers 0, 1, 2, ..."""
    lines = [
        b'{"step":1,"token_index":0,"layer_index":%d,"top_feature_indices":[]}' % layer
        for layer in range(records)
    ]
    ends = tuple(accumulate(len(line) + 1 for line in lines))
    return Chunk(
        lane="rank1",
        rank=1,
        attempt=1,
        segment=1,
        records=tuple(lines),
        heads=tuple(RecordHead(step=1) for _ in lines),
        ends=ends,
        before=Cursor("abc", {"rank1": Position(1, 0)}),
    )


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), [0, 1, 2]),
        (Selection(layers=frozenset({0, 2})), [0, 2]),
        (Selection(layers=frozenset({0})), [0]),
        (Selection(layers=frozenset({7})), []),
        (Selection(ranks=frozenset({0})), []),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_the_place_always_ends_behind_the_chunk(
    parse: Callable[[bytes], list[Any]], selection: Selection, wanted: list[int], *, batch: bool
) -> None:
    """Whatever was left out, a client that comes back does not read this chunk again."""
    request = StreamRequest(selection=selection, batch=batch)

    sent = b"".join(render_selected(chunk(3), request))

    bodies = [event.body for event in parse(sent)]
    layers = [row["layer_index"] for row in (bodies[0] if batch and bodies else bodies)]
    last_id = [line for line in sent.decode().splitlines() if line.startswith("id: ")][-1]
    assert layers == wanted
    assert last_id == f"id: {chunk(3).after.text()}"


def test_having_caught_up_is_no_event() -> None:
    """A client acts on records, not on their absence."""
    assert render(CaughtUp()) == ()
