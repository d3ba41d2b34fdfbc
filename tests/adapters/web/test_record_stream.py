from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from aegir_adapters.web import Pace, create_app
from aegir_adapters.web.record_stream import RecordStream
from aegir_adapters.web.stopping import Stopping

pytestmark = pytest.mark.anyio

STREAM = "/api/p5/sae/stream"
SIX_FIELDS = [
    "step",
    "token_index",
    "layer_index",
    "top_feature_indices",
    "top_feature_activations",
    "reconstruction_loss",
]


async def test_the_source_comes_first_then_the_lines_of_the_log(run: Any, client: Any) -> None:
    """A client sees which file is read, then its lines byte for byte, the six fields first."""
    await run.step(1)

    async with client.open() as stream:
        source = await stream.next()
        records = await stream.records(6)

    assert source.name == "source"
    assert source.body["source"] == "live"
    assert source.body["path"] == str(run.directory.live("sae_features"))
    assert [record.data for record in records] == run.lines
    assert list(records[0].body)[:6] == SIX_FIELDS
    assert all(record.cursor for record in records)


async def test_what_is_appended_arrives(run: Any, client: Any) -> None:
    """An open stream goes on with what is written after it was opened, across a checkpoint."""
    await run.step(1)
    async with client.open() as stream:
        await stream.records(6)

        await run.step(2)
        await run.save(2)
        await run.step(3)

        assert [event.data for event in await stream.records(6)] == run.lines[6:12]
        assert (await stream.until("checkpoint")).body == {"step": 2, "checkpoint": "checkpoint-2"}
        assert [event.data for event in await stream.records(6)] == run.lines[12:]


@pytest.mark.parametrize("read", [1, 5, 6, 7, 12, 13])
async def test_a_reconnect_misses_nothing_and_sees_nothing_twice(
    run: Any, client: Any, read: int
) -> None:
    """`Last-Event-ID` goes on behind that record, whatever was sealed and written meanwhile."""
    await run.step(1)
    await run.step(2)
    await run.save(2)
    await run.step(3)
    async with client.open(f"{STREAM}?from=start") as stream:
        before = await stream.records(read)

    await run.save(3)
    await run.step(4)
    async with client.open(STREAM, last_event_id=before[-1].cursor) as stream:
        first = await stream.next()
        after = await stream.records(24 - read)

    assert first.body["verdict"] == "resumed"
    assert [event.data for event in before + after] == run.lines


async def test_from_chooses_where_to_begin(run: Any, client: Any) -> None:
    """`checkpoint`, the default, begins behind the last one; `start` and `now` at either end."""
    await run.step(1)
    await run.save(1)
    await run.step(2)

    async with client.open() as stream:
        assert (await stream.until("message")).data == run.lines[6]
    async with client.open(f"{STREAM}?from=start") as stream:
        assert (await stream.until("message")).data == run.lines[0]
    async with client.open(f"{STREAM}?from=now") as stream:
        await stream.until("source")
        await run.step(3)
        assert (await stream.until("message")).data == run.lines[12]


async def test_filters_and_batches(run: Any, client: Any) -> None:
    """`layer` and `every` leave records out; `batch` makes one event of an append."""
    await run.step(1)

    async with client.open(f"{STREAM}?layer=4&batch=1&step_max=1&feature=0,2") as stream:
        batch = await stream.until("message")

    assert batch.body == [json.loads(run.lines[1]), json.loads(run.lines[5])]


async def test_a_filtered_client_resumes_behind_what_it_did_not_want(
    run: Any, connect: Any
) -> None:
    """The place moves on behind records that were left out, so they are not read again."""
    await run.step(1)
    await run.finish()
    async with connect(create_app(run.directory.cfg)) as client:
        answer = await client.http.get(f"{STREAM}?layer=9")
        last_id = answer.text.rpartition("id: ")[2].strip()

        again = await client.http.get(STREAM, headers={"last-event-id": last_id})

    assert again.status_code == 204


async def test_a_bad_parameter_is_refused_by_name(client: Any) -> None:
    """400 says which parameter, which value, and what is allowed."""
    answer = await client.http.get(f"{STREAM}?every=often")

    assert answer.status_code == 400
    assert answer.json() == {
        "error": "Expected a whole number of at least 1, got `often` - at parameter `every`",
        "parameter": "every",
        "value": "often",
        "allowed": "a whole number of at least 1",
    }


@pytest.mark.parametrize(
    ("cursor", "verdict"), [("nonsense!", "malformed"), ("0123abc~rank0:1:0:0:00000000", "foreign")]
)
async def test_an_unknown_cursor_gets_a_verdict(
    run: Any, client: Any, cursor: str, verdict: str
) -> None:
    """A cursor of elsewhere is told so in the first event, and reading starts as without one."""
    await run.step(1)

    async with client.open(f"{STREAM}?cursor={cursor}") as stream:
        source = await stream.next()
        record = await stream.until("message")

    assert source.body["verdict"].startswith(verdict)
    assert record.data == run.lines[0]


async def test_a_run_that_has_not_begun_is_idle(run: Any, client: Any) -> None:
    """Before there is anything the client is told why, and gets the records when they come."""
    async with client.open() as stream:
        idle = await stream.next()
        await run.step(1)
        records = await stream.records(6)

    assert idle.name == "idle"
    assert "does not exist yet" in idle.body["reason"]
    assert [record.data for record in records] == run.lines


async def test_a_finished_run_ends_the_stream_for_good(run: Any, client: Any) -> None:
    """After the last record comes `closed`, the end, and 204 for a browser that connects again.

    Who lost the connection behind the last record hears once more how the run ended.
    """
    await run.step(1)
    async with client.open() as stream:
        await stream.until("source")
        await run.finish()
        events = await stream.rest()
    last = [event.cursor for event in events if event.cursor][-1]

    again = await client.http.get(STREAM, headers={"last-event-id": last})
    end = again.text.rpartition("id: ")[2].strip()
    over = await client.http.get(STREAM, headers={"last-event-id": end})
    fresh = await client.http.get(STREAM)

    assert [event.data for event in events[:-1]] == run.lines
    assert events[-1].name == "closed"
    assert events[-1].body == {"status": "finished"}
    assert "event: closed" in again.text
    assert 'data: {"step"' not in again.text
    assert over.status_code == 204
    assert fresh.status_code == 200


@pytest.mark.parametrize("start", ["checkpoint", "start"])
async def test_a_closed_run_ends_the_stream_wherever_reading_starts(
    run: Any, client: Any, start: str
) -> None:
    """Also a client that got no record is not kept waiting for what never comes."""
    await run.step(1)
    await run.save(1)
    await run.finish()

    async with client.open(f"{STREAM}?from={start}") as stream:
        events = await stream.rest()
    nothing_more = await client.http.get(f"{STREAM}?from=now")

    assert events[-1].name == "closed"
    assert nothing_more.status_code == 204


async def test_a_cursor_in_the_middle_of_a_finished_run_still_gets_the_rest(
    run: Any, client: Any
) -> None:
    """204 is for those who have read everything, not for those who come late."""
    await run.step(1)
    async with client.open() as stream:
        [first] = await stream.records(1)
    await run.finish()

    async with client.open(STREAM, last_event_id=first.cursor) as stream:
        rest = [event.data for event in await stream.rest() if event.name == "message"]

    assert rest == run.lines[1:]


async def test_headers_keep_proxies_from_holding_events_back(run: Any, client: Any) -> None:
    """The stream may be neither stored, changed nor buffered, and begins at once."""
    async with client.open() as stream:
        headers = stream.response.headers
        opening = await anext(stream.response.aiter_raw())

    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert opening.startswith(b"retry: ")


async def test_heartbeats_come_while_nothing_happens(run: Any, connect: Any) -> None:
    """A quiet stream still carries a heartbeat, with an empty object as its body."""
    async with (
        connect(create_app(run.directory.cfg, pace=Pace(heartbeat_s=0.01))) as client,
        client.open() as stream,
    ):
        assert (await stream.until("heartbeat")).body == {}


async def test_all_clients_share_one_tail(run: Any, connect: Any) -> None:
    """However many clients follow, they ride on the same hub."""
    await run.step(1)
    records = RecordStream(
        run.directory, stopping=Stopping(lambda: False), pace=Pace(heartbeat_s=0.01)
    )
    app = Starlette(routes=[Route("/", records.answer)])
    async with connect(app) as client, client.open("/") as one, client.open("/") as other:
        await one.records(6)
        await other.records(6)
        hub = records.hub.worker
        assert hub is not None
        assert hub.statistics().subscribers == 2
        await run.step(2)
        assert [event.data for event in await one.records(6)] == run.lines[6:]
        assert [event.data for event in await other.records(6)] == run.lines[6:]


async def test_a_directory_that_cannot_be_read_is_told_in_the_stream(
    tmp_path: Path, connect: Any
) -> None:
    """What the system says becomes an event; the server neither fails nor hangs."""
    async with connect(create_app(tmp_path / ("x" * 300))) as client, client.open() as stream:
        event = await stream.next()

    assert event.name == "stalled"
    assert event.body["reason"] == "File name too long"
