"""What does each durability cost, and how much may a loss of power take under it?

Steps of 2,048 records (0.8 MB) go through a recorder into a journal, one every 40 ms, with a
checkpoint after every 50. Times are those of the sink's calls on the recorder's thread, and of
`seal` as training waits for it. The window is the largest age, since `emit`, that a record had
reached before a sync covered it; under `os` none ever does.

There is no rival: `os` is the yardstick. Budget: the thread keeps up with the pace (write and flush
together at most 40 ms a step on average), a checkpoint waits at most 250 ms at the median, and the
window of `interval` stays within `flush_every_s` + 250 ms.

Name a directory on the disk in question as the argument; otherwise the temporary one is used.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from aegir_stream import codec
from aegir_stream.durability import Durability
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink
from aegir_stream.testing import make_record
from aegir_stream.typing import Append, Sealed

T = TypeVar("T")

RECORDS = 2048
STEPS = 200
PACE_S = 0.04
SAVE_EVERY = 50
FLUSH_EVERY_S = 1.0
ALLOWANCE_S = 0.25
LATENTS = tuple(range(16))


class Encoded(msgspec.Struct, frozen=True):
    """A step whose records are encoded already, so that only the disk is measured."""

    data: bytes
    records: int
    step: int
    stream: str = "sae_features"
    pass_: str | None = None

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return len(self.data)

    def encode(self) -> bytes:
        """Return the lines."""
        return self.data

    def release(self) -> None:
        """Hold nothing."""


class TimedSink(JournalSink):
    """A journal that takes the time of every call, and the age of what a sync covers."""

    def __init__(self, run: RunDirectory, *, durability: Durability) -> None:
        super().__init__(run, durability=durability)
        self.syncs = {"os": (), "checkpoint": ("seal",), "interval": ("seal", "flush")}[durability]
        self.times: dict[str, list[float]] = {"write": [], "flush": [], "seal": []}
        self.ages: list[float] = []
        self.emitted: dict[int, float] = {}
        self.oldest: float | None = None

    async def write(self, append: Append) -> None:
        """Write, timed."""
        await self._timed("write", lambda: super(TimedSink, self).write(append))
        if self.oldest is None and append.step is not None:
            self.oldest = self.emitted[append.step]

    async def flush(self) -> None:
        """Flush, timed."""
        await self._timed("flush", super().flush)

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:
        """Seal, timed."""
        return await self._timed(
            "seal", lambda: super(TimedSink, self).seal(checkpoint=checkpoint, step=step)
        )

    async def _timed(self, name: str, act: Callable[[], Awaitable[T]]) -> T:
        started = time.monotonic()
        result = await act()
        now = time.monotonic()
        self.times[name].append(1e3 * (now - started))
        if name in self.syncs and self.oldest is not None:
            self.ages.append(now - self.oldest)
            self.oldest = None
        return result


def record(root: Path, durability: Durability, data: bytes) -> tuple[TimedSink, list[float]]:
    """Record a run; return its sink, and how long training waited for each checkpoint, ms."""
    sink = TimedSink(RunDirectory.at(root / durability), durability=durability)
    recorder = Recorder(sink, flush_every_s=FLUSH_EVERY_S)
    recorder.flush()
    sink.times["flush"] = []
    waits = []
    start = time.monotonic()
    for step in range(1, STEPS + 1):
        time.sleep(max(0.0, start + step * PACE_S - time.monotonic()))
        sink.emitted[step] = time.monotonic()
        recorder.emit(Encoded(data, RECORDS, step))
        if step % SAVE_EVERY == 0:
            asked = time.monotonic()
            recorder.seal(checkpoint=f"checkpoint-{step}", step=step)
            waits.append(1e3 * (time.monotonic() - asked))
    recorder.close()
    if recorder.statistics().errors:
        raise SystemExit(recorder.statistics().last_error)
    return sink, waits


def p50_p99(times: list[float]) -> str:
    """Return two quantiles, or dashes."""
    if len(times) < 2:
        return f"{'-':>8} {'-':>8}"
    quantiles = statistics.quantiles(times, n=100, method="inclusive")
    return f"{quantiles[49]:8.2f} {quantiles[98]:8.2f}"


def verdict(durability: Durability, sink: TimedSink, waits: list[float]) -> str:
    """Compare with the budget."""
    per_step = (sum(sink.times["write"]) + sum(sink.times["flush"])) / STEPS
    met = per_step <= 1e3 * PACE_S and statistics.median(waits) <= 1e3 * ALLOWANCE_S
    if durability == "interval":
        met = met and max(sink.ages) <= FLUSH_EVERY_S + ALLOWANCE_S
    return "within budget" if met else "over budget (40 ms a step, 250 ms a seal, 1.25 s)"


def main() -> None:
    """Measure each mode and print it beside its budget."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir())
    one = codec.encode(
        msgspec.structs.replace(
            make_record(),
            top_feature_indices=LATENTS,
            top_feature_activations=tuple(1 / (k + 1) for k in LATENTS),
        )
    )
    data = one * RECORDS
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, {platform.release()}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}, {len(data) / 1e6:.1f} MB a step, in {root}")
    pairs = " ".join(f"{name + ' p50':>8} {'p99':>8}" for name in ("write", "flush", "seal"))
    print(f"{'durability':11} {pairs} {'wait max':>9} {'window s':>9}   (ms but for the last)")
    for durability in ("os", "checkpoint", "interval"):
        with tempfile.TemporaryDirectory(dir=root) as directory:
            sink, waits = record(Path(directory), durability, data)
        calls = " ".join(p50_p99(sink.times[name]) for name in ("write", "flush", "seal"))
        window = f"{max(sink.ages):9.2f}" if sink.ages else f"{'all':>9}"
        judged = verdict(durability, sink, waits)
        print(f"{durability:11} {calls} {max(waits):9.1f} {window}   {judged}", flush=True)


if __name__ == "__main__":
    main()
