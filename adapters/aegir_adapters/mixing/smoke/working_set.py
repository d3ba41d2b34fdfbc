"""What a ledger does whose entries hold the working set: the bands of its four metrics.

Each of S logical shards gives one chunk to each step, and reads the streams of each of K readers
one behind the other. So there are S x K *lanes*, each with one live stream at a time, whose states
are the working set. A window of W steps has P = S W chunks; streams have L chunks.

**Fresh writes.** Among n chunks of one lane at most ceil(n / L) <= (n + L - 1) / L are the first of
a stream. Over all lanes that is at most P / L + S K (L - 1) / L: the streams that start. A healthy
ledger has no other fresh writes. This holds for certain, whatever is picked.

**Evictions.** Each makes room for a fresh write: at most as many.

**False evictions.** None, if the capacity is large enough. A live stream of weight w that is
written again after g steps has been pushed back by the keys written meanwhile: at most one for each
other lane and each stream that has started, S K + S g / L + S K. It waits longer than g steps with
probability (1 - w)^g. `capacity_for` solves that for g, over all lanes and steps, and assumes the
worst of the hash: that all those keys are one rank's.

**Resident entries.** At least the working set, once every lane was picked: after t steps one is not
with probability at most S K (1 - w)^t. At most what the ranks have room for, which has to be more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aegir_adapters.mixing.bands import Band
from aegir_adapters.mixing.store import EVICTIONS, FALSE_EVICTIONS, FRESH_WRITES, RESIDENT_ENTRIES

if TYPE_CHECKING:
    from aegir_adapters.mixing.smoke.config import SmokeConfig

__all__ = ["capacity_for", "ledger_bands"]


def ledger_bands(config: SmokeConfig, *, ranks: int, step: int) -> dict[str, Band]:
    """Return the bands of the window that ends with `step`."""
    lanes, length = _lanes(config), config.stream_chunks
    starts = config.shards * config.log_every / length + lanes * (length - 1) / length
    settled = step >= _patience(config, chances=lanes)
    return {
        EVICTIONS: Band(0.0, starts),
        FALSE_EVICTIONS: Band(0.0, 0.0),
        FRESH_WRITES: Band(0.0, starts),
        RESIDENT_ENTRIES: Band(
            float(lanes) if settled else 0.0, float(max(lanes, config.ledger.capacity * ranks))
        ),
    }


def capacity_for(config: SmokeConfig) -> int:
    """Return a capacity of each rank that makes a false eviction as unlikely as a false alarm."""
    lanes = _lanes(config)
    longest_wait = _patience(config, chances=lanes * config.steps)
    return math.ceil(2 * lanes + config.shards * longest_wait / config.stream_chunks)


def _lanes(config: SmokeConfig) -> int:
    return config.shards * len(config.readers)


def _patience(config: SmokeConfig, *, chances: int) -> float:
    """Return the steps after which a lane that was not picked in any of its chances is no chance.

    That is the g of `chances` (1 - w)^g = `false_alarm`, for the smallest weight.
    """
    rarest = min(config.targets.weights.values())
    if rarest == 1:
        return 1.0
    return math.log(config.false_alarm / chances) / math.log1p(-rarest)
