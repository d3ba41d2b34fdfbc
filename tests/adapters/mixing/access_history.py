"""What a ledger has to count, recomputed from everything that was ever done to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from aegir_adapters.mixing.store import LEDGER_METRICS, StoreLimits


class Write(NamedTuple):
    """A key was written."""

    key: int
    starts: bool = False


class Step(NamedTuple):
    """A step began, so many after the last one."""

    after: int


class Wipe(NamedTuple):
    """Everything was forgotten on purpose."""


Act = Write | Step | Wipe


def acts(*, keys: int) -> st.SearchStrategy[list[Act]]:
    """Random histories over a few keys."""

    def act(number: int) -> st.SearchStrategy[Act]:
        # Mostly writes: a store that is wiped all the time evicts nothing.
        if number == 0:
            return st.just(Wipe())
        if number < 8:
            return st.builds(Step, st.integers(0, 3))
        return st.builds(Write, st.integers(0, keys - 1), st.booleans())

    return st.lists(st.integers(0, 39).flatmap(act), max_size=80)


def limits() -> st.SearchStrategy[StoreLimits]:
    """Small stores, with and without ages and rings."""
    return st.builds(
        StoreLimits,
        capacity=st.integers(1, 6),
        max_age_steps=st.none() | st.integers(0, 6),
        ring=st.none() | st.integers(0, 6),
    )


def recount(history: Sequence[Act], limits: StoreLimits, *, window: int = 0) -> dict[str, float]:
    """Return the counts of the acts from number `window` on, by the definitions alone.

    Nothing is kept from one act to the next: who is resident, and who was evicted in which order,
    is asked of the history before it.
    """
    evictions = fresh = false = 0
    for number, act in enumerate(history):
        resident, evicted = _standing(history[:number], limits)
        after = _standing(history[: number + 1], limits)
        if number < window:
            continue
        if isinstance(act, Write) and act.key not in resident:
            fresh += 1
            false += act.key in evicted and not act.starts
        if not isinstance(act, Wipe):
            written = {act.key} if isinstance(act, Write) else set()
            evictions += len((set(resident) | written) - set(after[0]))
    resident = _standing(history, limits)[0]
    counts = (evictions, false, fresh, len(resident))
    return dict(zip(LEDGER_METRICS, map(float, counts), strict=True))


def _standing(history: Sequence[Act], limits: StoreLimits) -> tuple[list[int], list[int]]:
    """Return the resident keys by their last write, and those in the ring by their eviction."""
    now, written, evicted = 0, dict[int, int](), list[int]()
    for act in history:
        match act:
            case Wipe():
                written, evicted = {}, []
                continue
            case Step(after=after):
                now += after
            case Write(key=key):
                written.pop(key, None)
                written[key] = now
                evicted = [other for other in evicted if other != key]
        age = limits.max_age_steps
        leaving = [k for k, at in written.items() if age is not None and now - at > age]
        leaving += list(written)[len(leaving) :][
            : max(0, len(written) - len(leaving) - limits.capacity)
        ]
        for key in leaving:
            del written[key]
        evicted = [*evicted, *leaving]
        evicted = evicted[max(0, len(evicted) - limits.ring_length) :]
    return list(written), evicted
