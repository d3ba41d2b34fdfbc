from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import CaughtUp, Closed, Stalled
from aegir_stream.layout import RunDirectory
from aegir_stream.patience import Patience, Unfinished
from aegir_stream.source import Level, RunSource
from aegir_stream.testing import ManualClock
from core.runs import Life

pytestmark = pytest.mark.anyio

LINE = Unfinished("run.jsonl", 100, 20)
GROWN = Unfinished("run.jsonl", 100, 21)


def test_a_line_is_told_once_and_again_after_it_has_grown() -> None:
    """Time counts from when a line was last seen to grow; other lines do not matter."""
    clock = ManualClock()
    patience = Patience(clock, stall_s=30)
    other = Unfinished("other.jsonl", 0, 1)

    def after(seconds: float, *lines: Unfinished) -> list[str]:
        clock.advance(seconds)
        return [stalled.path for stalled in patience.spent(lines)]

    assert after(0, LINE) == []
    assert after(29, LINE) == []
    assert after(1, LINE, other) == ["run.jsonl"]
    assert after(99, LINE) == []
    assert after(1, GROWN) == []
    assert after(30, GROWN) == ["run.jsonl"]
    assert after(1) == []
    assert after(0, GROWN) == []
    assert after(30, GROWN) == ["run.jsonl"]


class Watch:
    """A follower of a run, on a clock of the test's."""

    def __init__(self, run: RunDirectory, level: Level) -> None:
        self.clock = ManualClock()
        self.seen: list[Delivery] = []
        self.source = RunSource(
            run, clock=self.clock, poll_s=(5, 5), notify=False, start="start", level=level
        )

    async def follow(self) -> None:
        """Keep what is delivered."""
        async with aclosing(self.source.follow()) as deliveries:
            async for delivery in deliveries:
                self.seen.append(delivery)

    async def until(self, kind: type, count: int = 1) -> None:
        """Let time pass until `count` deliveries of a kind were seen."""
        with anyio.fail_after(20):
            while sum(isinstance(d, kind) for d in self.seen) < count:
                self.clock.advance(5)
                await anyio.wait_all_tasks_blocked()
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("level", ["live", "committed"])
async def test_a_line_that_stays_unfinished_is_told_by_a_follower(
    tmp_path: Path, level: Level
) -> None:
    """`Stalled` names the file, the time and the length; what comes is delivered all the same."""
    life = Life(RunDirectory.at(tmp_path))
    life.record_step()
    torn = b'{"step":2,"token_index":0,'
    live = life.run.live("sae_features")
    with live.open("ab") as file:
        file.write(torn)
    watch = Watch(life.run, level)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.follow)
        begun = watch.clock.now
        await watch.until(Stalled)
        assert watch.clock.now - begun >= 30
        life.kill()
        life.resume(None)
        life.record_step()
        await watch.until(Chunk, 2)
        life.finish()
        await watch.until(Closed)
        tasks.cancel_scope.cancel()

    [stalled] = [d for d in watch.seen if isinstance(d, Stalled)]
    assert stalled == Stalled(
        path=str(live),
        reason=f"the last line has been unfinished for 30 s ({len(torn)} bytes): "
        "its writer may have died",
    )
    caught_up = [i for i, d in enumerate(watch.seen) if isinstance(d, CaughtUp)]
    assert caught_up[0] < watch.seen.index(stalled)


async def test_a_stream_that_was_closed_never_stalls(tmp_path: Path) -> None:
    """Who has nothing more to say has said so: that is no stall, however long ago."""
    life = Life(RunDirectory.at(tmp_path))
    life.record_step()
    life.finish()
    watch = Watch(life.run, "live")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.follow)
        await watch.until(CaughtUp)
        for _ in range(8):
            watch.clock.advance(5)
            await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert [type(d) for d in watch.seen if isinstance(d, Closed | Stalled)] == [Closed]
