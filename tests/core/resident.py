"""A process whose memory is measured: python -m core.resident WHAT RUN [NUMBER].

It imports the core and nothing else, does one thing with a run, and prints one line of JSON.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import msgspec

from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import Batch, CaughtUp
from aegir_stream.hub import Hub
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import replay
from aegir_stream.source import RunSource


class Measured(msgspec.Struct, kw_only=True):
    """What one process did and needed.

    Attributes:
        records: records that it saw; the least and the most that one of several readers saw.
        baseline_mib: resident memory before it began.
        peak_mib: the highest that it had.
        seconds: how long it took.
        megabytes: size of the live file, 10^6 bytes.
        threads: most threads that ran when somebody looked.
    """

    records: tuple[int, int] = (0, 0)
    baseline_mib: float = 0.0
    peak_mib: float = 0.0
    seconds: float = 0.0
    megabytes: float = 0.0
    threads: int = 0


def memory_mib(field: str, process: str = "self") -> float:
    """Return a field of a process' status: `VmRSS`, resident now, or `VmHWM`, the highest yet."""
    status = Path(f"/proc/{process}/status").read_text("ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


class Count:
    """Counts records, and checks that none comes twice or out of order."""

    def __init__(self) -> None:
        self.records = 0
        self._behind = (0, 0)

    def add(self, chunk: Chunk) -> None:
        """Take in the next records of one lane."""
        for end in chunk.ends:
            if (chunk.segment, end) <= self._behind:
                raise SystemExit(f"a record that ends at {end} came after {self._behind}")
            self._behind = chunk.segment, end
        self.records += len(chunk.records)


async def follow(run: RunDirectory, keep: bool) -> Count:  # noqa: FBT001 - anyio.run has no keywords
    """Follow a run until nothing is left; a reader that keeps its chunks is the control."""
    count = Count()
    kept: list[Delivery] = []
    async with aclosing(RunSource(run, start="start").follow()) as deliveries:
        async for delivery in deliveries:
            if isinstance(delivery, Chunk):
                count.add(delivery)
            elif isinstance(delivery, CaughtUp):
                break
            if keep:
                kept.append(delivery)
    return count


class Counted:
    """A view that counts."""

    streams = ("sae_features",)

    def initial(self) -> int:
        """Return nothing."""
        return 0

    def fold(self, state: int, events: Iterable[Any]) -> int:
        """Count events."""
        return state + sum(1 for _ in events)


class Crowd:
    """Subscribers of one hub, each of which stops at another place until all have stopped.

    Args:
        run: a run that holds everything already.
        size: how many they are.
        finishing: each so many-th of them goes on to the end then.
    """

    def __init__(self, run: RunDirectory, size: int, *, finishing: int) -> None:
        self.finished = [Count() for _ in range(0, size, finishing)]
        self.threads = 0
        self._records = sum(record_count(run))
        self._size = size
        self._finishing = finishing
        self._stopped = 0
        self._go = anyio.Event()
        self._hub: Hub[tuple[bytes, ...]] = Hub(
            lambda after, start: RunSource(run, after=after, start=start), render=rendered
        )

    async def read(self) -> None:
        """Return when those that finish have read everything."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hub.run)
            async with anyio.create_task_group() as crowd:
                for number in range(self._size):
                    crowd.start_soon(self._subscribe, number)
            tasks.cancel_scope.cancel()

    async def _subscribe(self, number: int) -> None:
        finishes = number % self._finishing == 0
        count = self.finished[number // self._finishing] if finishes else Count()
        chunks = 0
        async with aclosing(self._hub.subscribe(start="start")) as blocks:
            async for block in blocks:
                if isinstance(block.delivery, Chunk):
                    chunks += 1
                    count.add(block.delivery)
                    if chunks == number + 1:
                        await self._stop()
                    if self._go.is_set() and (not finishes or count.records == self._records):
                        return

    async def _stop(self) -> None:
        self._stopped += 1
        self.threads = max(self.threads, threading.active_count())
        if self._stopped == self._size:
            self._go.set()
        await self._go.wait()


def rendered(delivery: Delivery) -> tuple[bytes, ...]:
    """Return about what a web server makes of a delivery: one run of bytes."""
    return (b"\n\n".join(delivery.records),) if isinstance(delivery, Chunk) else ()


def record_count(run: RunDirectory) -> Iterable[int]:
    """Yield how many records each of a run's appends says that it holds."""
    with run.live("sae_features").open("rb") as lines:
        for line in lines:
            control = codec.decode_control(line) if codec.is_control(line) else None
            if isinstance(control, Batch):
                yield control.records


def main(what: str, run: RunDirectory, number: int) -> Measured:
    """Do one thing and measure it."""
    baseline_mib, started, threads = memory_mib("VmRSS"), time.perf_counter(), 1
    if what == "crowd":
        crowd = anyio.run(crowded, run, number)
        counts, threads = crowd.finished, crowd.threads
    elif what == "replay":
        count = Count()
        count.records = replay(run, Counted()).state
        counts = [count]
    else:
        counts = [anyio.run(follow, run, what == "hold")]
    return Measured(
        records=(min(c.records for c in counts), max(c.records for c in counts)),
        baseline_mib=baseline_mib,
        peak_mib=memory_mib("VmHWM"),
        seconds=time.perf_counter() - started,
        megabytes=run.live("sae_features").stat().st_size / 1e6,
        threads=threads,
    )


async def crowded(run: RunDirectory, size: int) -> Crowd:
    """Let a crowd of a size read a run; each twentieth of it to the end."""
    crowd = Crowd(run, size, finishing=20)
    await crowd.read()
    return crowd


if __name__ == "__main__":
    measured = main(sys.argv[1], RunDirectory.at(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.buffer.write(msgspec.json.encode(measured) + b"\n")
