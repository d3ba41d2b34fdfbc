"""What does it cost to watch a run, and ten thousand of them?

Budgets: the first read of a feed of a million rows within 3 s, a poll that finds nothing new within
1 ms, and the warm overview of 10,000 runs within 500 ms.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from aegir_stream.catalog import Catalog
from aegir_stream.feed_reader import FeedReader
from aegir_stream.layout import RunDirectory
from aegir_stream.standing import RunWatch

ROWS = 1_000_000
RUNS = 10_000
SETUPS = 10
POLLS = 200


def write_feed(path: Path, rows: int) -> None:
    """Write a feed as a Python program does."""
    chance = random.Random(0)  # noqa: S311 - scores, not secrets
    with path.open("w") as file:
        for i in range(rows):
            row = {"iter": i, "score": chance.gauss(i / rows, 0.1), "ts": 1.7e9 + i}
            file.write(json.dumps(row | {"program_id": f"p{i}", "model": "m"}) + "\n")


def write_runs(root: Path, runs: int) -> None:
    """Write runs that have ended, of a hundred rows each."""
    write_feed(root / "feed", 100)
    feed = (root / "feed").read_bytes()
    (root / "feed").unlink()
    for number in range(runs):
        run = RunDirectory.at(root / f"setup-{number % SETUPS}" / f"run-{number}")
        run.root.mkdir(parents=True)
        run.live("progress").write_bytes(feed)
        launch = {"started_at": 1.7e9 + number, "ended_at": 1.75e9, "status": "finished"}
        manifest = {"run_id": "r", "created_at": 1.7e9 + number, "attempts": [launch]}
        run.manifest_path.write_bytes(msgspec.json.encode(manifest))
        os.utime(run.root, (1.75e9, 1.75e9))


def timed(action: Callable[[], object]) -> float:
    """Return how many milliseconds something takes."""
    began = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - began)


def told(what: str, ms: float, budget_ms: float) -> None:
    """Print a value and its verdict."""
    verdict = "within budget" if ms <= budget_ms else "over budget"
    print(f"{what:44} {ms:10.3f} ms  {verdict} ({budget_ms:g} ms)")


def measure_feed(root: Path) -> None:
    """Measure one long feed."""
    run = RunDirectory.at(root / "long")
    run.root.mkdir()
    write_feed(run.live("progress"), ROWS)
    os.utime(run.root, (1.75e9, 1.75e9))
    reader, watch = FeedReader(run), RunWatch(run)
    told(f"first read of {ROWS:,} rows", timed(reader.poll), 3_000)
    told("idle poll, median", statistics.median(timed(reader.poll) for _ in range(POLLS)), 1)
    told("first standing", timed(watch.look), 3_000)
    told("idle look, median", statistics.median(timed(watch.look) for _ in range(POLLS)), 1)
    with run.live("progress").open("a") as file:
        file.write('{"iter": 1000001, "score": 2.0}\n')
    told("look that finds a row", timed(watch.look), 300)


def measure_overview(root: Path) -> None:
    """Measure many runs."""
    write_runs(root, RUNS)
    catalog = Catalog(root)

    def overview() -> None:
        for setup in catalog.setups():
            for run in setup.runs:
                catalog.standing(run)

    cold = timed(overview)
    print(f"{f'overview of {RUNS:,} runs, cold':44} {cold:10.3f} ms")
    told(f"overview of {RUNS:,} runs, warm, best of 5", min(timed(overview) for _ in range(5)), 500)
    told("finding one of them", timed(lambda: catalog.find("setup-3", 7)), 100)


def main() -> None:
    """Measure each and print it beside its budget."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, {sys.platform}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as root:
        measure_feed(Path(root))
    with tempfile.TemporaryDirectory() as root:
        measure_overview(Path(root))


if __name__ == "__main__":
    main()
