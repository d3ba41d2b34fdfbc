"""How long after an append does a follower in another process have the record?

Budget: p50 <= 1 ms and p99 <= 5 ms on a local disk, with at most 0.5 % of a core while idle; where
nothing notifies, p99 <= 300 ms. The rival is the 500 ms poll that the format's first readers used.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import anyio

from aegir_stream.chunk import Chunk
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource
from aegir_stream.testing import make_append, make_record

APPENDS = 400
IDLE_S = 3.0
WAYS = {
    "notified": (True, (0.005, 0.25)),
    "polled, 5-250 ms": (False, (0.005, 0.25)),
    "polled every 500 ms": (False, (0.5, 0.5)),
}


def write(root: str, count: int) -> None:
    """Append records 5 to 40 ms apart; each tells when it was written."""
    live = RunDirectory.at(root).live("sae_features")
    chance = random.Random(0)  # noqa: S311 - intervals, not secrets
    with live.open("ab", buffering=0) as file:
        for _ in range(count):
            time.sleep(chance.uniform(0.005, 0.04))
            line = make_append(make_record()).data
            stamp = f',"at":{time.monotonic_ns()}}}\n'.encode()
            file.write(line.rstrip(b"}\n") + stamp)


async def follow(root: str, way: str, count: int) -> tuple[list[float], float]:
    """Return the latencies in ms, and the share of a core used while nothing happened."""
    notify, poll_s = WAYS[way]
    source = RunSource(RunDirectory.at(root), start="now", notify=notify, poll_s=poll_s)
    latencies: list[float] = []
    idle_share = 0.0
    writer = multiprocessing.get_context("spawn").Process(target=write, args=(root, count))

    async def measure_idle() -> None:
        nonlocal idle_share
        await anyio.sleep(0.5)
        before = time.process_time()
        await anyio.sleep(IDLE_S)
        idle_share = (time.process_time() - before) / IDLE_S
        writer.start()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(measure_idle)
        async with aclosing(source.follow()) as deliveries:
            async for delivery in deliveries:
                if isinstance(delivery, Chunk):
                    now = time.monotonic_ns()
                    for record in delivery.records:
                        at = int(record[record.index(b'"at":') + 5 : -1])
                        latencies.append((now - at) / 1e6)
                if len(latencies) == count:
                    break
    writer.join()
    return latencies, idle_share


def main() -> None:
    """Measure each way of following and print it beside its budget."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, {sys.platform}, load {os.getloadavg()[0]:.1f}")
    print(f"{'way':22} {'p50 ms':>8} {'p99 ms':>8} {'idle CPU %':>10}")
    for way, (notify, _) in WAYS.items():
        count = APPENDS if notify else APPENDS // 4
        with tempfile.TemporaryDirectory() as root:
            Path(root, "sae_features.live.jsonl").write_bytes(make_append(make_record()).data)
            latencies, idle = anyio.run(follow, root, way, count)
        quantiles = statistics.quantiles(latencies, n=100)
        p50, p99 = quantiles[49], quantiles[98]
        verdict = ""
        if notify:
            met = p50 <= 1 and p99 <= 5 and idle <= 0.005
            verdict = "within budget" if met else "over budget (1 ms, 5 ms, 0.5 %)"
        print(f"{way:22} {p50:8.2f} {p99:8.2f} {100 * idle:10.2f}  {verdict}")


if __name__ == "__main__":
    main()
