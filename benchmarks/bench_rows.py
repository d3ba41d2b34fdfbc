"""What does it cost to write a step's SAE records as JSON lines, and what does training feel of it?

Run as `python benchmarks/bench_rows.py`. All ways are timed in turn within each round, so that
their ratios survive a machine whose speed changes; the absolute figures do not.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch
from records import diverged, sae_columns

from aegir_adapters.trainer.columns import ColumnPool, SAEColumns
from aegir_adapters.trainer.rows import Precision, RowEncoder
from aegir_stream.events import SAELogRecord

Encode: TypeAlias = Callable[[SAEColumns], bytes]

FIELDS = SAELogRecord.__struct_fields__
SMALL_OPERATIONS = 12_000
PIECE_BYTES = 1 << 20


def python_rows(columns: SAEColumns) -> Iterator[tuple[Any, ...]]:
    """Yield each record as Python objects, in the order of `FIELDS`."""
    per_record = msgspec.structs.astuple(columns)[1:]
    for row in zip(*(column.tolist() for column in per_record), strict=True):
        yield (columns.step, *row)


def with_json(columns: SAEColumns) -> bytes:
    """Encode with `json.dumps`, one dict per record."""
    rows = python_rows(columns)
    return "".join(json.dumps(dict(zip(FIELDS, row, strict=True))) + "\n" for row in rows).encode()


def with_msgspec(columns: SAEColumns) -> bytes:
    """Encode with msgspec, one struct per record."""
    rows = python_rows(columns)
    records = [SAELogRecord(**dict(zip(FIELDS, row, strict=True))) for row in rows]
    return msgspec.json.Encoder().encode_lines(records)


ENCODERS: Mapping[str, Encode] = {
    "json.dumps per record": with_json,
    "msgspec struct per record": with_msgspec,
    "rows, exact float32": RowEncoder(Precision.exact()).encode,
    "rows, declared digits": RowEncoder().encode,
}


def timed(work: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the milliseconds that `work` takes."""
    start = clock()
    work()
    return 1_000 * (clock() - start)


def quantiles(milliseconds: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    p50, p99 = np.quantile(milliseconds, [0.5, 0.99])
    return float(p50), float(p99)


def verdict(name: str, value: float, *, budget: float, unit: str = "ms") -> None:
    """Print a measured value beside its budget."""
    word = "within" if value <= budget else "MISSED"
    print(f"  {word:7} {name}: {value:.2f} {unit} (budget {budget:g} {unit})")


def encoding(columns: SAEColumns, *, rounds: int, budget_ms: float) -> None:
    """Time every encoder on the same records."""
    print(f"\nEncoding {columns.records:,} records of k = {columns.k}, {rounds} rounds in turn")
    times: dict[str, list[float]] = {name: [] for name in ENCODERS}
    for _ in range(rounds):
        for name, encode in ENCODERS.items():
            times[name].append(timed(lambda encode=encode: encode(columns)))  # type: ignore[misc]
    slowest = quantiles(times["json.dumps per record"])[0]
    print(f"  {'':27}{'p50 ms':>9}{'p99 ms':>9}{'ns/rec':>9}{'x json':>9}{'B/rec':>9}")
    for name, encode in ENCODERS.items():
        p50, p99 = quantiles(times[name])
        per_record = 1e6 * p50 / columns.records
        size = len(encode(columns)) / columns.records
        print(f"  {name:27}{p50:9.2f}{p99:9.2f}{per_record:9.0f}{slowest / p50:9.1f}{size:9.0f}")
    p50 = quantiles(times["rows, declared digits"])[0]
    verdict("encode, median", p50, budget=budget_ms)


def training_thread(columns: SAEColumns, *, rounds: int) -> None:
    """Time what the training thread does itself: one copy into memory of the pool."""
    pool = ColumnPool()

    def copy() -> None:
        mine, give_back = pool.take(columns.records, columns.k, step=columns.step)
        for target, source in zip(
            msgspec.structs.astuple(mine)[1:], msgspec.structs.astuple(columns)[1:], strict=True
        ):
            target[...] = source
        give_back()

    p50, p99 = quantiles([timed(copy) for _ in range(rounds)])
    print(f"\nThe training thread's own part, {columns.records:,} records")
    verdict("copy into the pool, p50", p50, budget=0.5)
    verdict("copy into the pool, p99", p99, budget=2.0)


def encode_and_write(columns: SAEColumns, *, rounds: int) -> None:
    """Time encoding, checksum and append, in CPU time of the thread."""
    encode = ENCODERS["rows, declared digits"]
    with tempfile.TemporaryDirectory() as folder:
        descriptor = os.open(Path(folder, "rows.jsonl"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)

        def append() -> None:
            lines = memoryview(encode(columns))
            zlib.crc32(lines)
            for start in range(0, len(lines), PIECE_BYTES):
                os.write(descriptor, lines[start : start + PIECE_BYTES])

        p50, p99 = quantiles([timed(append, clock=time.thread_time) for _ in range(rounds)])
        os.close(descriptor)
    print(f"\nEncode, crc32 and write, {columns.records:,} records, CPU time (p99 {p99:.2f} ms)")
    verdict("encode and write, median", p50, budget=12)


def slowdown(columns: SAEColumns, *, rounds: int) -> None:
    """Time a step of small operations while another thread encodes the step before.

    A step ends when both are done: an encoder that takes longer than the step holds it up.
    """
    left, right = torch.randn(8, 8), torch.randn(8, 8)

    def step() -> None:
        for _ in range(SMALL_OPERATIONS):
            torch.mm(left, right)

    def step_with(encode: Encode) -> None:
        background = thread.submit(encode, columns)
        step()
        background.result()

    times: dict[str, list[float]] = {name: [] for name in ("alone", *ENCODERS)}
    with ThreadPoolExecutor(1) as thread:
        for _ in range(rounds):
            times["alone"].append(timed(step))
            for name, encode in ENCODERS.items():
                times[name].append(timed(lambda encode=encode: step_with(encode)))  # type: ignore[misc]
    alone = quantiles(times["alone"])[0]
    print(f"\nA step of {SMALL_OPERATIONS:,} small torch operations with an encoder beside it")
    for name, taken in times.items():
        p50, p99 = quantiles(taken)
        print(f"  {name:27}p50 {p50:8.1f} ms  p99 {p99:8.1f} ms  x {p50 / alone:.2f}")
    ratio = quantiles(times["rows, declared digits"])[0] / alone
    verdict("slowdown of the step", ratio, budget=1.25, unit="x")


def main() -> None:
    """Answer the question."""
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "msgspec", "torch"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, {versions}")
    step = sae_columns(tokens=4_096, layers=4)
    encoding(step, rounds=25, budget_ms=6.0)
    encoding(sae_columns(tokens=435, layers=2, latents=512), rounds=100, budget_ms=0.6)
    print("\nThe same large step, all of it NaN:", end="")
    encoding(diverged(step), rounds=10, budget_ms=9.0)
    training_thread(step, rounds=300)
    encode_and_write(step, rounds=40)
    slowdown(step, rounds=15)


if __name__ == "__main__":
    main()
