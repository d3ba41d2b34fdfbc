from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.hub import Hub
from aegir_stream.layout import RunDirectory
from aegir_stream.shelf import Block, Ledger
from aegir_stream.source import RunSource
from core.runs import Life, drain

pytestmark = pytest.mark.anyio

SMALL_BYTES = 16 << 10


def chunks_of(life: Life) -> list[Chunk]:
    """Return what is to be read of a run."""
    deliveries = drain(RunSource(life.run, start="start"))
    return [delivery for delivery in deliveries if isinstance(delivery, Chunk)]


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run with one large append."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step(1000)
    return life


def test_blocks_are_whole_until_much_is_held_and_small_then(life: Life) -> None:
    """What subscribers hold beyond a bound comes in small pieces; none is lost or moved by that."""
    [chunk] = chunks_of(life)
    ledger: Ledger[None] = Ledger(lambda _: None)
    held: list[Block[None]] = []
    while not ledger.is_strained:
        held += ledger.blocks_of(chunk, chunk.after)
        assert held[-1].delivery is chunk

    pieces = [block.delivery for block in ledger.blocks_of(chunk, chunk.after)]
    chunks = [piece for piece in pieces if isinstance(piece, Chunk)]

    assert len(chunks) > 1
    assert max(sum(map(len, piece.records)) for piece in chunks) <= SMALL_BYTES
    assert [record for piece in chunks for record in piece.records] == [*chunk.records]
    assert [piece.before for piece in chunks[1:]] == [piece.after for piece in chunks[:-1]]
    assert [cursor for piece in chunks for cursor in piece.cursors()] == [*chunk.cursors()]
    held.clear()
    assert not ledger.is_strained


def test_what_is_kept_for_others_is_no_strain(life: Life) -> None:
    """Only what nobody but subscribers holds makes blocks small."""
    [chunk] = chunks_of(life)
    ledger: Ledger[None] = Ledger(lambda _: None)
    ring: list[Block[None]] = []
    for _ in range(100):
        for block in ledger.blocks_of(chunk, chunk.after):
            ring.append(block)
            ledger.keep(block.weight)

    assert not ledger.is_strained


async def test_those_who_fall_behind_together_read_the_file_together(life: Life) -> None:
    """A crowd that joins at one place renders what it reads a few times, not once for each."""
    for _ in range(20):
        life.record_step(200)
    rendered: list[Delivery] = []

    def counting(delivery: Delivery) -> int:
        rendered.append(delivery)
        return len(delivery.records) if isinstance(delivery, Chunk) else 0

    hub: Hub[int] = Hub(
        lambda after, start: RunSource(life.run, after=after, start=start), render=counting
    )

    async def read_all() -> None:
        records = 0
        async with aclosing(hub.subscribe(start="start")) as blocks:
            async for block in blocks:
                records += block.rendered
                if records == len(life.everything):
                    break

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as crowd:
                for _ in range(40):
                    crowd.start_soon(read_all)
        tasks.cancel_scope.cancel()

    records = sum(len(each.records) for each in rendered if isinstance(each, Chunk))
    assert records < 10 * len(life.everything)


async def test_a_reader_that_waits_holds_nothing_of_what_it_handed_out(life: Life) -> None:
    """Between two polls the records belong to whoever took them."""
    source = RunSource(life.run, start="start")
    taken = source.poll()

    assert any(isinstance(delivery, Chunk) for delivery in taken)
    assert [reader._found for reader in source._lanes.values()] == [[]]
