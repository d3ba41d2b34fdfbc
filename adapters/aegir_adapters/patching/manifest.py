"""What a run store tells of its runs and of itself."""

from __future__ import annotations

import msgspec

__all__ = ["RunManifest", "StoreStatistics"]


class RunManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a stored run holds.

    Attributes:
        run_id: its name.
        model_id: the model that it was captured from.
        num_prompt_tokens: tokens of its prompt.
        sites: captured sites.
        layers: captured layers.
        positions: how many positions were captured.
        dtype: of the activations.
        size_bytes: memory that they take.
        leases: how many read it now.
        transient: whether it goes with its last lease.
    """

    run_id: str
    model_id: str
    num_prompt_tokens: int
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    positions: int
    dtype: str
    size_bytes: int
    leases: int
    transient: bool


class StoreStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds and what it has done.

    Attributes:
        runs: listed runs.
        leases: leases that are held.
        budget_bytes: what it tries to stay below.
        listed_bytes: memory of listed runs.
        lingering_bytes: memory of runs that are no longer listed but still read.
        hits: leases taken of a listed run.
        misses: leases asked for of a run that is not listed.
        evicted: runs evicted for the budget.
        dropped: runs dropped, by their owner or with their last lease.
        expired: leases that ended because nobody renewed them.
    """

    runs: int
    leases: int
    budget_bytes: int
    listed_bytes: int
    lingering_bytes: int
    hits: int
    misses: int
    evicted: int
    dropped: int
    expired: int
