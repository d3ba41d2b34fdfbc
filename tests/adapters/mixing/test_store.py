from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.mixing.store import StateStore, StoreLimits
from aegir_stream.errors import OptionError

from .access_history import Act, Step, Wipe, Write, acts, limits, recount

EVICTIONS, FALSE, FRESH, RESIDENT = (
    "ledger/evictions",
    "ledger/false_evictions",
    "ledger/fresh_writes",
    "ledger/resident_entries",
)


def store(**options: int | None) -> StateStore:
    """A store of states that are one number."""
    return StateStore(StoreLimits(**options), shape=())  # type: ignore[arg-type]


def write(into: StateStore, *keys: int, starts: bool = False) -> None:
    """Write under each key the key itself."""
    into.write(keys, torch.tensor(keys, dtype=torch.float32), starts=[starts] * len(keys))


def perform(on: StateStore, history: Sequence[Act]) -> None:
    """Do to a store what a history tells."""
    for act in history:
        match act:
            case Write(key=key, starts=starts):
                write(on, key, starts=starts)
            case Step(after=after):
                on.begin_step(on.step + after)
            case Wipe():
                on.wipe()


@given(history=acts(keys=9), later=acts(keys=9), limits=limits())
def test_the_counts_of_a_window_are_those_of_the_history(
    history: list[Act], later: list[Act], limits: StoreLimits
) -> None:
    """Each window counts what the definitions count in the full history, from its first act on."""
    kept = StateStore(limits, shape=())
    perform(kept, history)
    assert kept.drain() == recount(history, limits)
    perform(kept, later)
    assert kept.drain() == recount([*history, *later], limits, window=len(history))


def test_false_evictions_are_the_hits_that_the_ring_as_capacity_would_have_added() -> None:
    """On 200 random traces: hits(C + R) - hits(C) of a pure LRU, whatever C, R and the trace."""
    rng = random.Random(6)  # noqa: S311 - traces, not secrets
    told = 0
    for _ in range(200):
        capacity, ring, keys = rng.randint(1, 12), rng.randint(0, 12), rng.randint(2, 40)
        small, large = store(capacity=capacity, ring=ring), store(capacity=capacity + ring)
        # From evenly spread keys to a few that come all the time.
        skew = rng.choice((0.0, 0.7, 1.5))
        weights = [1 / (1 + key) ** skew for key in range(keys)]
        trace = rng.choices(range(keys), weights, k=300)
        for one in (small, large):
            for at in range(0, len(trace), 10):
                write(one, *trace[at : at + 10])
        counted = small.drain()
        assert counted[FALSE] == counted[FRESH] - large.drain()[FRESH]
        told += counted[FALSE] > 0
    assert told > 100, "the traces show nothing"


@given(
    trace=st.lists(st.integers(0, 15), max_size=120),
    capacity=st.integers(1, 8),
    ring=st.integers(0, 8),
)
def test_a_pure_lru_counts_by_stack_distance(trace: list[int], capacity: int, ring: int) -> None:
    """A write is fresh from distance C on and false below C + R (distinct keys written since)."""
    kept = store(capacity=capacity, ring=ring)
    write(kept, *trace)
    fresh = false = 0
    for at, key in enumerate(trace):
        before = trace[:at]
        if key not in before:
            fresh += 1
            continue
        distance = len(set(before[len(before) - before[::-1].index(key) :]))
        fresh += distance >= capacity
        false += capacity <= distance < capacity + ring
    counted = kept.drain()
    assert (counted[FRESH], counted[FALSE]) == (fresh, false)
    assert counted[EVICTIONS] == fresh - counted[RESIDENT]


@given(history=acts(keys=9), limits=limits())
def test_what_is_found_is_what_was_written_last(history: list[Act], limits: StoreLimits) -> None:
    """Each resident key has its last state and no other, whatever slots changed hands."""
    kept, last = StateStore(limits, shape=(2,)), dict[int, float]()
    for number, act in enumerate(history):
        if isinstance(act, Write):
            kept.write([act.key], torch.full((1, 2), float(number)), starts=[act.starts])
            last[act.key] = number
        else:
            perform(kept, [act])
    states, found = kept.read(range(9))
    assert [key for key in range(9) if found[key]] == sorted(kept.keys)
    for key in range(9):
        assert states[key].tolist() == ([last[key]] * 2 if found[key] else [0.0, 0.0])


@given(batches=st.lists(st.lists(st.integers(0, 8), max_size=12), max_size=6))
def test_a_batch_is_written_row_by_row(batches: list[list[int]]) -> None:
    """Many rows in one call leave what one call for each row leaves, also beyond the capacity."""
    together, apart = store(capacity=3), store(capacity=3)
    for number, keys in enumerate(batches):
        states = torch.arange(len(keys)) + 100.0 * number
        together.write(keys, states, starts=[False] * len(keys))
        for key, state in zip(keys, states, strict=True):
            apart.write([key], state[None], starts=[False])
    assert together.keys == apart.keys
    assert together.ring == apart.ring
    assert together.read(range(9))[0].tolist() == apart.read(range(9))[0].tolist()
    assert together.drain() == apart.drain()


def test_a_stream_that_starts_is_no_false_eviction() -> None:
    """A key that is fresh, in the ring and starts a new stream wants no old state."""
    kept = store(capacity=1, ring=2)
    write(kept, 1, 2)
    assert kept.ring == (1,)
    write(kept, 1, starts=True)
    assert kept.drain()[FALSE] == 0


def test_a_key_that_is_written_again_is_not_remembered_as_evicted() -> None:
    """It leaves the ring at once, and leaves its place there to another."""
    kept = store(capacity=1, ring=2)
    write(kept, 1, 2, 1)
    assert (kept.keys, kept.ring) == ((1,), (2,))
    write(kept, 3)
    assert kept.ring == (2, 1)


def test_a_wipe_makes_no_false_signal() -> None:
    """What was forgotten on purpose is no eviction, and neither was what was evicted before."""
    kept = store(capacity=2)
    write(kept, 1, 2, 3)
    kept.wipe()
    assert (kept.keys, kept.ring) == ((), ())
    write(kept, 1, 2)
    assert kept.drain() == {EVICTIONS: 1, FALSE: 0, FRESH: 5, RESIDENT: 2}


def test_an_entry_is_evicted_once_it_is_older_than_its_age() -> None:
    """Not written for `max_age_steps` whole steps: evicted at the next, and false if written."""
    kept = store(capacity=8, max_age_steps=2)
    write(kept, 1)
    kept.begin_step(1)
    write(kept, 2)
    kept.begin_step(2)
    assert kept.keys == (1, 2)
    kept.begin_step(3)
    assert kept.keys + kept.ring == (2, 1)
    write(kept, 1)
    assert kept.drain() == {EVICTIONS: 1, FALSE: 1, FRESH: 3, RESIDENT: 2}


def test_reading_changes_nothing() -> None:
    """An evaluation that reads does not change what training finds next."""
    kept = store(capacity=2)
    write(kept, 1, 2)
    kept.read([1, 1, 9])
    write(kept, 3)
    assert kept.keys == (2, 3)


def test_what_is_kept_and_what_is_handed_out_are_copies_without_gradients() -> None:
    """Neither later changes nor a backward pass reach through the store."""
    kept = StateStore(StoreLimits(capacity=2), shape=(3,))
    state = torch.ones(1, 3, requires_grad=True)
    kept.write([1], state * 2, starts=[True])
    with torch.no_grad():
        state.zero_()
    handed_out = kept.read([1])[0]
    assert not handed_out.requires_grad
    handed_out.zero_()
    assert kept.read([1])[0].tolist() == [[2.0, 2.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.float8_e5m2])
def test_states_keep_their_dtype(dtype: torch.dtype) -> None:
    """A state comes back as it was stored."""
    kept = StateStore(StoreLimits(capacity=2), shape=(2, 2), dtype=dtype)
    state = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]]).to(dtype)
    kept.write([7], state, starts=[True])
    states, found = kept.read([8, 7])
    assert states.dtype == dtype
    assert found.tolist() == [False, True]
    assert states.float().tolist() == [[[0, 0], [0, 0]], state[0].float().tolist()]


def test_memory_is_taken_once() -> None:
    """However many keys come and go, the states stay in the same block."""
    kept = store(capacity=4)
    block = kept.states.data_ptr()
    for key in range(100):
        write(kept, key)
        kept.begin_step(key)
    assert kept.states.data_ptr() == block
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "Expected `capacity` of at least 1, got `0`"),
        ({"capacity": 1, "max_age_steps": -1}, "Expected `max_age_steps` of at least 0, got `-1`"),
        ({"capacity": 1, "ring": -1}, "Expected `ring` of at least 0, got `-1`"),
    ],
)
def test_impossible_limits_are_refused(options: dict[str, int], message: str) -> None:
    """A limit that no store can keep is named with its bound."""
    with pytest.raises(OptionError, match=message):
        StoreLimits(**options)


def test_steps_do_not_go_back() -> None:
    """An order by age would be wrong if they did."""
    kept = store(capacity=1)
    kept.begin_step(5)
    with pytest.raises(OptionError, match="Expected a step of at least 5, got `4`"):
        kept.begin_step(4)
