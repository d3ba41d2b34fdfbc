from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from aegir_adapters.file import FileSink
from aegir_adapters.stdout import StdoutSink
from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import Checkpoint, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.relay import relay
from aegir_stream.selection import Selection
from aegir_stream.sinks import MemorySink
from aegir_stream.source import RunSource
from aegir_stream.testing import SinkContract, make_append
from core.runs import Life, drain

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Name of the event loop."""
    return str(request.param)


class TestFileSink(SinkContract):
    """A file keeps the contract."""

    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "deep" / "copy.jsonl"

    def make(self) -> FileSink:
        """Return a sink for a file whose directory does not exist yet."""
        return FileSink(self.path)

    def lines(self) -> list[bytes]:
        """Return the lines of the file."""
        return self.path.read_bytes().splitlines()

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The file adapter is built on aiofiles, which is asyncio's."""
        return "asyncio"


class TestStdoutSink(SinkContract):
    """Standard output keeps the contract."""

    def make(self) -> StdoutSink:
        """Return a sink that prints into memory."""
        self.output = io.BytesIO()
        return StdoutSink(self.output)

    def lines(self) -> list[bytes]:
        """Return what was printed."""
        return self.output.getvalue().splitlines()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """A second sink for the same file goes on behind the first."""
    for _ in range(2):
        sink = FileSink(tmp_path / "copy.jsonl")
        await sink.open()
        await sink.write(make_append())
        await sink.aclose()

    assert len((tmp_path / "copy.jsonl").read_bytes().splitlines()) == 2


async def test_a_relay_passes_on_what_was_selected(tmp_path: Path) -> None:
    """Records go into the sink in order, those not selected do not, checkpoints seal."""
    life = Life(RunDirectory.at(tmp_path))
    life.record_step(4)
    life.save()
    life.record_step(4)
    life.finish()
    sink = MemorySink()
    source = RunSource(life.run, start="start")

    with anyio.move_on_after(20):
        async with aclosing(source.follow()) as deliveries:

            async def until_the_end() -> AsyncIterator[Delivery]:
                async for delivery in deliveries:
                    yield delivery
                    if isinstance(delivery, Chunk) and delivery.heads[-1].step == 2:
                        return

            await relay(until_the_end(), sink, selection=Selection(step_min=2, every=3))

    written = [codec.decode(line, SAELogRecord) for line in sink.lines("sae_features")]
    expected = [r for r in life.surviving if r.step == 2 and _in_turn(r, every=3)]
    assert written == expected
    assert sink.checkpoints == ["checkpoint-1"]
    assert [append.step for append in sink.appends] == [2]


def _in_turn(record: SAELogRecord, *, every: int) -> bool:
    return (record.token_index + record.step + (record.completion or 0)) % every == 0


async def relayed(deliveries: Iterable[Delivery]) -> MemorySink:
    """Return a sink that was given the deliveries."""

    async def said() -> AsyncIterator[Delivery]:
        for delivery in deliveries:
            yield delivery

    sink = MemorySink()
    await relay(said(), sink)
    return sink


def _lanes(path: Path) -> tuple[RunDirectory, list[Life]]:
    run = RunDirectory.at(path)
    return run, [Life(run, rank=rank) for rank in (0, 1)]


async def test_a_checkpoint_of_several_lanes_seals_once(tmp_path: Path) -> None:
    """The sink is sealed when the last lane has reached the checkpoint."""
    run, lives = _lanes(tmp_path)
    for life in lives:
        life.record_step()
        life.save()
    deliveries = drain(RunSource(run, start="start"))
    last = max(i for i, said in enumerate(deliveries) if isinstance(said, Checkpoint))

    assert (await relayed(deliveries)).checkpoints == ["checkpoint-1"]
    assert (await relayed(deliveries[:last])).checkpoints == []


async def test_a_lane_that_appears_later_seals_nothing_again(tmp_path: Path) -> None:
    """A checkpoint that was sealed without a lane stays sealed once."""
    run, source = RunDirectory.at(tmp_path), RunSource(RunDirectory.at(tmp_path), start="start")
    deliveries: list[Delivery] = []
    for rank in (0, 1):
        life = Life(run, rank=rank)
        life.record_step()
        life.save()
        deliveries += drain(source)

    assert (await relayed(deliveries)).checkpoints == ["checkpoint-1"]


async def test_a_checkpoint_that_was_saved_again_seals_again(tmp_path: Path) -> None:
    """After a resume only the lanes that came back are waited for, and names may come twice."""
    run, lives = _lanes(tmp_path)
    source = RunSource(run, start="start")
    for _ in range(2):
        for life in lives:
            life.record_step()
            life.save()
    deliveries = drain(source)
    for life in lives:
        life.kill()
    lives[0].resume("checkpoint-1")
    lives[0].record_step()
    lives[0].save()
    deliveries += drain(source)

    sealed = (await relayed(deliveries)).checkpoints
    assert sealed == ["checkpoint-1", "checkpoint-2", "checkpoint-2"]
