from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import Checkpoint, Idle, SAELogRecord, SourceSwitch
from aegir_stream.hub import Hub
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource, Start
from core.runs import Life, cursors_in

pytestmark = pytest.mark.anyio


def render(delivery: Delivery) -> list[SAELogRecord]:
    """Return the records of a delivery."""
    if not isinstance(delivery, Chunk):
        return []
    return [codec.decode(record, SAELogRecord) for record in delivery.records]


@asynccontextmanager
async def hub_of(run: RunDirectory, *, ring_bytes: int = 1 << 20) -> AsyncIterator[Hub[object]]:
    """Run a hub for the time of a test."""

    def open_source(after: str | None, start: Start) -> RunSource:
        return RunSource(run, after=after, start=start, poll_s=(0.001, 0.02))

    hub: Hub[object] = Hub(open_source, render=render, ring_bytes=ring_bytes)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        yield hub
        tasks.cancel_scope.cancel()


async def collect(hub: Hub[object], count: int, **options: object) -> list[Delivery]:
    """Subscribe and return what is delivered until `count` records were seen."""
    seen: list[Delivery] = []
    records = 0
    with anyio.fail_after(20):
        async with aclosing(hub.subscribe(**options)) as blocks:  # type: ignore[arg-type]
            async for block in blocks:
                seen.append(block.delivery)
                records += len(block.rendered)  # type: ignore[arg-type]
                if records >= count:
                    break
    return seen


def decoded(deliveries: list[Delivery]) -> list[SAELogRecord]:
    """Return the records of deliveries."""
    return [record for delivery in deliveries for record in render(delivery)]


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run that has recorded a step."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    return life


async def test_a_subscriber_gets_what_was_there_and_what_comes(life: Life) -> None:
    """Joining gives the live tail first, then every later record, once, across a checkpoint."""
    seen: list[Delivery] = []
    async with hub_of(life.run) as hub:
        with anyio.fail_after(20):
            async with aclosing(hub.subscribe()) as blocks:
                async for block in blocks:
                    seen.append(block.delivery)
                    if len(decoded(seen)) == 9:
                        break
                    if len(life.everything) < 9 and isinstance(block.delivery, Chunk):
                        life.record_step()
                        life.save()
                        life.record_step()

    assert isinstance(seen[0], SourceSwitch)
    assert decoded(seen) == life.everything
    assert len([d for d in seen if isinstance(d, Checkpoint)]) == 1


async def test_all_subscribers_get_everything(life: Life) -> None:
    """Any number of subscribers see the same records, whenever they join."""
    async with hub_of(life.run) as hub:
        first = await collect(hub, 3)
        life.record_step()
        results: list[list[SAELogRecord]] = []

        async def watch() -> None:
            results.append(decoded(await collect(hub, 6)))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(watch)

    assert decoded(first) == life.everything[:3]
    assert results == [life.everything] * 20


async def test_a_slow_subscriber_reads_the_file_and_loses_nothing(life: Life) -> None:
    """Who falls out of the ring catches up from the file; the ring stays bounded."""
    async with hub_of(life.run, ring_bytes=20_000) as hub:
        seen: list[Delivery] = []
        async with aclosing(hub.subscribe()) as blocks:
            async for block in blocks:
                seen.append(block.delivery)
                if len(decoded(seen)) == 3:
                    # While this subscriber is busy, much more is written than the ring holds.
                    for _ in range(30):
                        life.record_step(5)
                    await collect(hub, 3 + 150)
                if len(decoded(seen)) >= 153:
                    break
        statistics = hub.statistics()

    assert decoded(seen) == life.everything
    assert statistics.ring_bytes <= 20_000
    assert statistics.evicted > 0
    assert statistics.catch_ups >= 1
    assert statistics.subscribers == 0


async def test_who_falls_out_of_the_ring_goes_on_where_it_was(life: Life) -> None:
    """A subscriber that rode in the ring and fell behind gets each record once all the same."""
    async with hub_of(life.run, ring_bytes=20_000) as hub:
        seen: list[Delivery] = []
        with anyio.fail_after(20):
            async with aclosing(hub.subscribe()) as blocks:
                async for block in blocks:
                    seen.append(block.delivery)
                    if len(life.everything) < 12 and isinstance(block.delivery, Chunk):
                        life.record_step()
                    elif len(decoded(seen)) == 12 and len(life.everything) == 12:
                        rode = hub.statistics().catch_ups == 0
                        for _ in range(30):
                            life.record_step(5)
                        await collect(hub, 12 + 150)
                    if len(decoded(seen)) >= 162:
                        break
        catch_ups = hub.statistics().catch_ups

    assert rode
    assert catch_ups >= 1
    assert decoded(seen) == life.everything


async def test_a_cursor_resumes_exactly_through_the_hub(life: Life) -> None:
    """Reconnecting behind any record misses nothing and doubles nothing, seal or not."""
    async with hub_of(life.run) as hub:
        before = await collect(hub, 3)
        life.record_step()
        life.save()
        life.record_step()
        after = cursors_in(before)[1]
        resumed = await collect(hub, 7, after=after)

    assert isinstance(resumed[0], SourceSwitch)
    assert resumed[0].verdict == "resumed"
    assert decoded(resumed) == life.everything[2:]


async def test_a_subscriber_may_wait_for_a_run_that_does_not_exist(tmp_path: Path) -> None:
    """The first word is `Idle`; once the run appears it is delivered from its first record."""
    run = RunDirectory.at(tmp_path / "later")
    async with hub_of(run) as hub:
        seen: list[Delivery] = []
        lives: list[Life] = []
        with anyio.fail_after(20):
            async with aclosing(hub.subscribe()) as blocks:
                async for block in blocks:
                    seen.append(block.delivery)
                    if isinstance(block.delivery, Idle):
                        lives.append(Life(run))
                        lives[0].record_step()
                    if decoded(seen):
                        break

    assert isinstance(seen[0], Idle)
    assert decoded(seen) == lives[0].everything


async def test_every_delivery_is_rendered_once_for_all(life: Life) -> None:
    """Subscribers that keep up share what was rendered."""
    rendered: list[Delivery] = []

    def counting(delivery: Delivery) -> list[SAELogRecord]:
        rendered.append(delivery)
        return render(delivery)

    hub: Hub[object] = Hub(
        lambda after, start: RunSource(life.run, after=after, start=start), render=counting
    )
    reached: list[int] = []

    async def watch() -> None:
        records = 0
        async with aclosing(hub.subscribe()) as blocks:
            async for block in blocks:
                records += len(block.rendered)  # type: ignore[arg-type]
                reached.append(records)
                if records == 6:
                    break

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as watchers:
                for _ in range(5):
                    watchers.start_soon(watch)
                while reached.count(3) < 5:
                    await anyio.lowlevel.checkpoint()
                rendered.clear()
                life.record_step()
        tasks.cancel_scope.cancel()

    assert reached.count(6) == 5
    assert [type(d) for d in rendered if isinstance(d, Chunk)] == [Chunk]
