"""What is computed together: chunks within a memory budget, the most promising first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from aegir_adapters.patching.cells import Job
from aegir_adapters.patching.lanes import Lane
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.patches import Patch

__all__ = ["Chunk", "Order", "Rider", "in_chunks"]

Order = Literal["importance", "position"]

STARTS_PER_RIDER: Final = 16
"""How many first rows share one rider, which starts at the first of them and so strays furthest. A
rider for each would be a fifth more work in a model of twelve layers; one for sixteen is two
hundredths."""

FIRST_SHARE: Final = 16
"""The first chunk takes this part of the budget, so that results come soon; each next one takes
four times as much, up to all of it."""


class Rider(msgspec.Struct, frozen=True, kw_only=True):
    """An unpatched lane that is computed along with patched ones: how far it strays is noise.

    Attributes:
        pair: index of the prompt pair.
        patches: one for each lane, overwriting nothing.
        starts: the first rows of the patches whose noise it measures.
    """

    pair: int
    patches: tuple[Patch, ...]
    starts: tuple[int, ...]


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that are computed together, the most promising first.

    Attributes:
        jobs: the jobs.
        riders: what measures their noise.
    """

    jobs: tuple[Job, ...]
    riders: tuple[Rider, ...]


def in_chunks(
    model: PatchableModel,
    jobs: Sequence[Job],
    lanes: Sequence[tuple[Lane, ...]],
    *,
    order: Order,
    chunk_bytes: int,
) -> list[Chunk]:
    """Return all jobs in chunks, each job once.

    Jobs of one pair that start at the same row share what lies before them, so they stay together
    where the budget allows.

    Args:
        model: the model.
        jobs: what is to be computed.
        lanes: of each pair.
        order: whether promising jobs come first, or those at the first rows.
        chunk_bytes: memory for the activations of a chunk.
    """
    found: list[Chunk] = []
    pending: list[Job] = []
    longest = max(lane.length for own in lanes for lane in own)
    row_bytes = _row_bytes(model, longest)
    budget, used = max(1, chunk_bytes // FIRST_SHARE), 0
    for group in _groups(jobs, order):
        for job in group:
            size = _bytes(model, job, lanes[job.pair], row_bytes)
            # A group is cut only where it would not fit the whole budget by itself.
            closes = used + size > (budget if job is group[0] else chunk_bytes)
            if pending and closes:
                found.append(_chunk(pending))
                pending, used, budget = [], 0, min(4 * budget, chunk_bytes)
            pending.append(job)
            used += size
    return [*found, _chunk(pending)] if pending else found


def _groups(jobs: Sequence[Job], order: Order) -> list[list[Job]]:
    """Return the jobs of each pair and first row, the first group being the most promising."""
    groups: dict[tuple[int, int], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.start, job.pair].append(job)
    for group in groups.values():
        group.sort(key=lambda job: -job.promise)
    if order == "importance":
        return sorted(groups.values(), key=lambda group: -group[0].promise)
    return [groups[place] for place in sorted(groups)]


def _bytes(model: PatchableModel, job: Job, lanes: Sequence[Lane], row_bytes: int) -> int:
    """Return about how much memory a job's rows take on their way through a layer."""
    start = job.start if model.engine == "staircase" else 0
    return sum(row_bytes * (lane.length - start) for lane in lanes)


def _row_bytes(model: PatchableModel, length: int) -> int:
    """Return about how much memory one row takes: residuals, both branches, attention weights."""
    heads = max(model.parts[-1].heads, 1)
    return model.element_size * (8 * model.d_model + 3 * model.widest + heads * length)


def _chunk(jobs: Sequence[Job]) -> Chunk:
    ordered = sorted(jobs, key=lambda job: -job.promise)
    return Chunk(jobs=tuple(ordered), riders=tuple(_riders(jobs)))


def _riders(jobs: Sequence[Job]) -> Iterator[Rider]:
    """Yield one rider for every few first rows of each pair."""
    by_pair: dict[int, dict[int, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        by_pair[job.pair][job.start].append(job)
    for pair, by_start in by_pair.items():
        starts = sorted(by_start)
        for first in range(0, len(starts), STARTS_PER_RIDER):
            own = starts[first : first + STARTS_PER_RIDER]
            members = [job for start in own for job in by_start[start]]
            enters = min(job.patches[0].boundary for job in members)
            riders = (Patch.rider(patch.lane, enters, own[0]) for patch in members[0].patches)
            yield Rider(pair=pair, patches=tuple(riders), starts=tuple(own))
