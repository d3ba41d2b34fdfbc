"""What does it cost to watch a data mix?

Budget: 50 us per step at four readers, and 10 us aimed at for four picks a step. A step is its
picks, `begin_step` and `drain_step_metrics`; the rival is the same mixer without its meter. Both
run in turns within one process, and their CPU time is compared: what else the machine does then
hits both alike, and least.

Then what a reduction over two gloo ranks takes: packed, and with one collective for each scalar.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from unittest import mock

import torch
from torch import distributed

from aegir_adapters.mixing import (
    Reader,
    StreamMixer,
    aggregate_step_metrics,
    reduce_loss_metrics,
)
from aegir_adapters.mixing.meter import Cells, MixMeter
from aegir_adapters.mixing.shard import ENDED, LogicalShard
from aegir_adapters.mixing.state import MixState

READERS = {"web/en": 4.0, "web/de": 3.0, "code": 2.0, "maths": 1.0}
PICKS = (4, 16, 64)
BUDGET_US, AIM_US = 50.0, 10.0
ROUNDS, STEPS = 300, 20
REDUCTIONS = 300
LEDGER = [f"ledger/{n}" for n in ("evictions", "false_evictions", "fresh_writes", "resident")]


class Bare(LogicalShard):
    """A logical shard whose picks nobody counts."""

    def next(self) -> Any:
        """Return the next item."""
        while self._choice is not None:
            reader = self._choice.at(self._schedule.uniform(self.draws))
            self._reading.reader = reader
            with self._reading:
                item = self._read(reader)
            self.draws += 1
            if item is not ENDED:
                self.last = reader
                return item
            self.places[reader].ended = True
            self._settle()
        return ENDED


def numbers(shard: int, shards: int) -> Iterator[int]:
    """Open an endless reader that costs next to nothing."""
    return count(shard, shards)


def readers() -> list[Reader]:
    """Return the four readers."""
    return [Reader(name=name, weight=weight, open=numbers) for name, weight in READERS.items()]


def stream_of(mixer: StreamMixer, *, bare: bool = False) -> Iterator[Any]:
    """Return what a mixer yields, with or without its meter."""
    with mock.patch("aegir_adapters.mixing.mixer.LogicalShard", Bare if bare else LogicalShard):
        return iter(mixer)


def step_of(
    picks: int, *, bare: bool = False, timed: bool = False, aggregated: bool = False
) -> Callable[[], None]:
    """Return what does so many steps."""
    mixer = StreamMixer(readers(), timed=timed)
    stream, steps = stream_of(mixer, bare=bare), count()

    def bare_steps() -> None:
        for _ in range(STEPS):
            for _ in range(picks):
                next(stream)

    def metered_steps() -> None:
        for _ in range(STEPS):
            mixer.begin_step(next(steps))
            for _ in range(picks):
                next(stream)
            raw = mixer.drain_step_metrics()
            if aggregated:
                aggregate_step_metrics(raw, mixer.targets)

    return bare_steps if bare else metered_steps


def timed_us(
    action: Callable[[], object],
    *,
    times: int = STEPS,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Return how many microseconds one of so many takes."""
    began = clock()
    action()
    return 1e6 * (clock() - began) / times


def told(what: str, values: list[float], budget: float | None = None) -> None:
    """Print two quantiles, and the verdict on the median."""
    quantiles = statistics.quantiles(values, n=100, method="inclusive")
    line = f"{what:46} {quantiles[49]:8.2f} {quantiles[98]:8.2f}"
    if budget is not None:
        verdict = "within" if quantiles[49] <= budget else "over"
        line += f"   {verdict} ({budget:g} us)"
    print(line, flush=True)


def measure_steps() -> None:
    """Measure what the meter adds to a step."""
    for picks in PICKS:
        bare = step_of(picks, bare=True)
        rivals = {
            "": step_of(picks),
            ", timers": step_of(picks, timed=True),
            ", aggregated": step_of(picks, aggregated=True),
        }
        whole: list[float] = []
        added: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(ROUNDS):
            without = timed_us(bare)
            whole.append(without)
            for name, action in rivals.items():
                added[name].append(timed_us(action) - without)
        told(f"{picks} picks, no meter", whole)
        for name, values in added.items():
            told(f"{picks} picks{name}: added by the meter", values, BUDGET_US)
        if picks == PICKS[0]:
            told(f"{picks} picks: against what is aimed at", added[""], AIM_US)


def counted(cells: Cells) -> None:
    """Count a pick, as a logical shard does."""
    cells[1] += 1
    cells[5] += 1


def measure_parts() -> None:
    """Measure single calls."""
    mixer = StreamMixer(readers())
    stream = stream_of(mixer)
    meter = MixMeter(mixer.targets, workers=1)
    shared, own = meter.row(0, workers=1).cells, meter.row(None).cells
    for what, action in (
        ("one pick counted, in a worker: shared memory", lambda: counted(shared)),
        ("one pick counted, without workers: a list", lambda: counted(own)),
        ("one item of a mixer", lambda: next(stream)),
        ("drain", mixer.drain_step_metrics),
        (
            "drain and aggregate, one process",
            lambda: aggregate_step_metrics(mixer.drain_step_metrics(), mixer.targets),
        ),
        ("state_dict, 16 shards", mixer.state_dict),
    ):
        told(what, [timed_us(lambda: [action() for _ in range(50)], times=50) for _ in range(200)])  # noqa: B023
    assert MixState.of(mixer.state_dict()).shards == 16  # noqa: S101 - what was measured works


def reduce_packed(raw: dict[str, float], mixer: StreamMixer, ledger: dict[str, float]) -> None:
    """Reduce all eleven scalars, in four collectives."""
    aggregate_step_metrics(raw, mixer.targets)
    reduce_loss_metrics(ledger, sum_keys=list(ledger))


def reduce_one_by_one(raw: dict[str, float], ledger: dict[str, float]) -> None:
    """Reduce the same values, each in a collective of its own."""
    for value in raw.values():
        distributed.all_reduce(torch.tensor(value, dtype=torch.float64))
    for operation in (distributed.ReduceOp.SUM, distributed.ReduceOp.MAX):
        for value in ledger.values():
            distributed.all_reduce(torch.tensor(value, dtype=torch.float64), op=operation)


def measure_reductions(rank: int, port: int) -> None:
    """Measure both ways on one of two ranks."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mixer = StreamMixer(readers())
    raw, ledger = mixer.drain_step_metrics(), dict.fromkeys(LEDGER, 1.0)
    packed, singly = [], []
    for _ in range(REDUCTIONS):
        wall: dict[str, Any] = {"times": 1, "clock": time.perf_counter}
        packed.append(timed_us(lambda: reduce_packed(raw, mixer, ledger), **wall))
        singly.append(timed_us(lambda: reduce_one_by_one(raw, ledger), **wall))
    if rank == 0:
        told("two gloo ranks, packed: 4 collectives", packed)
        told(f"two gloo ranks, one each: {len(raw) + 2 * len(ledger)} collectives", singly)
    distributed.barrier()
    distributed.destroy_process_group()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Measure the meter, its parts, and the reduction."""
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}")
    print(f"{'us':46} {'p50':>8} {'p99':>8}")
    measure_steps()
    measure_parts()
    context, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [context.Process(target=measure_reductions, args=(rank, port)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()


if __name__ == "__main__":
    main()
