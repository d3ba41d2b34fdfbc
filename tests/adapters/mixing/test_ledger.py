from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_adapters.mixing import (
    LEDGER_METRICS,
    StateError,
    StateLedger,
    StoreLimits,
    merge_ledger_states,
    reduce_loss_metrics,
)
from aegir_adapters.mixing.exchange import key_hash, owner_of
from aegir_stream.errors import OptionError, ShapeError

from .access_history import Act, Step, Wipe, Write, limits, recount
from .ranks import Ranks

EVICTIONS, FALSE, FRESH, RESIDENT = LEDGER_METRICS
KEYS = 12


class Round(NamedTuple):
    """What all ranks do at once: a step or a wipe, or rows that each of them writes."""

    act: Step | Wipe | None
    rows: tuple[tuple[Write, ...], ...]


class Window(NamedTuple):
    """What a rank told after a round: its counts, those of all, its keys, and what it read."""

    counts: dict[str, float]
    reduced: dict[str, float]
    extra: dict[str, float]
    resident: tuple[int, ...]
    found: list[bool]
    states: list[float]


def rounds(ranks: int) -> st.SearchStrategy[list[Round]]:
    """Random schedules in which ranks often have nothing to write."""
    write = st.builds(Write, st.integers(0, KEYS - 1), st.booleans())
    rows = st.tuples(*[st.lists(write, max_size=6).map(tuple)] * ranks)
    writing = st.builds(Round, st.none(), rows)
    nobody = ((),) * ranks
    acting = st.builds(Round, st.builds(Step, st.integers(0, 3)) | st.builds(Wipe), st.just(nobody))
    return st.lists(st.one_of(writing, writing, writing, acting), min_size=1, max_size=12)


def perform(schedule: Sequence[Round], limits: StoreLimits, *, every: int = 3) -> list[Window]:
    """Do what a schedule says as one of its ranks, with a window for each few rounds."""
    ledger, step, windows = StateLedger(limits, shape=()), 0, []
    for number, (act, rows) in enumerate(schedule):
        if isinstance(act, Step):
            step += act.after
            ledger.begin_step(step)
        elif isinstance(act, Wipe):
            ledger.wipe()
        ours = rows[ledger.rank]
        values = [float(value_of(number, ledger.rank, row)) for row in range(len(ours))]
        ledger.write(
            [write.key for write in ours],
            torch.tensor(values),
            starts=[write.starts for write in ours],
        )
        if number % every == every - 1:
            windows.append(look(ledger))
    return windows


def look(ledger: StateLedger) -> Window:
    """Begin a new window, and read every key on every rank."""
    counts = ledger.drain_step_metrics()
    states, found = ledger.read(range(KEYS))
    return Window(
        counts=counts,
        reduced=reduce_loss_metrics(counts, sum_keys=LEDGER_METRICS),
        extra=ledger.last_extra_metrics,
        resident=ledger.resident_keys,
        found=found.tolist(),
        states=states.tolist(),
    )


def value_of(number: int, rank: int, row: int) -> int:
    """Return what is written, different for every row."""
    return number * 100 + rank * 10 + row + 1


def histories(schedule: Sequence[Round], ranks: int) -> list[list[list[Act]]]:
    """Return for each rank, and each round, what is done to the states that it owns."""
    return [
        [
            [
                *([] if each.act is None else [each.act]),
                *(write for rows in each.rows for write in rows if owner(write.key, ranks) == rank),
            ]
            for each in schedule
        ]
        for rank in range(ranks)
    ]


def owner(key: int, ranks: int) -> int:
    """Return who owns a key."""
    return owner_of(key_hash(key), world_size=ranks)


def assert_counted(
    told: Sequence[Sequence[Window]], schedule: Sequence[Round], limits: StoreLimits
) -> None:
    """Compare what every rank told in every window with the definitions, over the full history."""
    by_rank = histories(schedule, len(told))
    for number in range(len(told[0])):
        before, after = 3 * number, 3 * number + 3
        expected = [
            recount(list(chain(*history[:after])), limits, window=sum(map(len, history[:before])))
            for history in by_rank
        ]
        reduced = {name: sum(each[name] for each in expected) for name in LEDGER_METRICS}
        reduced |= {f"{n}_max": max(each[n] for each in expected) for n in LEDGER_METRICS}
        for rank, windows in enumerate(told):
            assert windows[number].counts == windows[number].extra == expected[rank]
            assert windows[number].reduced == reduced


def assert_found(told: Sequence[Sequence[Window]], schedule: Sequence[Round]) -> None:
    """Compare what was read with what was written last, and where it is kept."""
    for number in range(len(told[0])):
        windows = [each[number] for each in told]
        resident = [key for window in windows for key in window.resident]
        assert len(set(resident)) == len(resident), "a key is resident on two ranks"
        for rank, window in enumerate(windows):
            assert all(owner_of(k, world_size=len(told)) == rank for k in window.resident)
            assert window.found == [key_hash(key) in resident for key in range(KEYS)]
        last = {
            write.key: float(value_of(at, rank, row))
            for at, each in enumerate(schedule[: 3 * number + 3])
            for rank, rows in enumerate(each.rows)
            for row, write in enumerate(rows)
        }
        expected = [last[key] if windows[0].found[key] else 0.0 for key in range(KEYS)]
        assert all(window.states == expected for window in windows)


@given(schedule=rounds(1), limits=limits())
def test_on_one_rank_the_ledger_counts_what_the_history_tells(
    schedule: list[Round], limits: StoreLimits
) -> None:
    """All four counters and their `_max`, in every window, equal the brute-force count."""
    told = [perform(schedule, limits)]
    assert_counted(told, schedule, limits)
    assert_found(told, schedule)


@settings(max_examples=60)
@given(schedule=rounds(2), limits=limits())
def test_on_two_ranks_the_ledger_counts_what_the_history_tells(
    two_ranks: Ranks, schedule: list[Round], limits: StoreLimits
) -> None:
    """Each owner counts its own keys, and over the ranks counts are added up: sum and `_max`."""
    told = two_ranks.run(perform, schedule, limits)
    assert_counted(told, schedule, limits)
    assert_found(told, schedule)


def write_all_from_rank_0(keys: Sequence[int]) -> tuple[tuple[int, ...], list[bool]]:
    """Have rank 0 write keys, and nobody but rank 1 read them."""
    ledger = StateLedger(StoreLimits(capacity=64), shape=())
    ours = keys if ledger.rank == 0 else []
    ledger.write(ours, torch.ones(len(ours)))
    wanted = keys if ledger.rank == 1 else []
    return ledger.resident_keys, ledger.read(wanted).found.tolist()


def test_a_rank_that_has_nothing_takes_part(two_ranks: Ranks) -> None:
    """It keeps what it owns of what others write, and asks without having written."""
    (first, nothing), (second, found) = two_ranks.run(write_all_from_rank_0, range(20))
    assert len(first) + len(second) == 20
    assert 0 < len(first) < 20
    assert (nothing, found) == ([], [True] * 20)


def write_twice(key: int) -> tuple[dict[str, float], list[float]]:
    """Have both ranks write a key twice in one call, and read it twice."""
    ledger = StateLedger(StoreLimits(capacity=4), shape=())
    values = torch.tensor([1.0, 2.0]) + 10 * ledger.rank
    ledger.write([key, key], values, starts=[True, False])
    counts = reduce_loss_metrics(ledger.drain_step_metrics(), sum_keys=LEDGER_METRICS)
    return counts, ledger.read([key, key]).states.tolist()


def test_of_a_key_that_comes_twice_the_last_row_of_the_last_rank_stays(two_ranks: Ranks) -> None:
    """Four rows of one key in one call are one fresh write and three more of a resident entry."""
    for counts, states in two_ranks.run(write_twice, 7):
        assert (counts[FRESH], counts[RESIDENT], counts[EVICTIONS]) == (1, 1, 0)
        assert states == [12.0, 12.0]


def make(capacity: int = 4, **options: Any) -> StateLedger:
    """A ledger of this process alone, of states that are one number."""
    return StateLedger(StoreLimits(capacity=capacity, **options), shape=())


def put(ledger: StateLedger, *keys: int) -> None:
    """Write under each key the key itself."""
    ledger.write(keys, torch.tensor(keys, dtype=torch.float32))


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@given(before=rounds(1), after=rounds(1), limits=limits())
def test_a_ledger_goes_on_where_it_was_saved(
    before: list[Round], after: list[Round], limits: StoreLimits
) -> None:
    """Entries, states, order and ages: what comes later is kept and evicted as without a break."""
    whole = StateLedger(limits, shape=())
    _write_rounds(whole, before)
    resumed = StateLedger(limits, shape=())
    resumed.load_state_dict(saved_and_loaded(whole.state_dict()))
    whole.drain_step_metrics()
    for ledger in (whole, resumed):
        _write_rounds(ledger, after)
    assert resumed.resident_keys == whole.resident_keys
    assert resumed.read(range(KEYS)).states.tolist() == whole.read(range(KEYS)).states.tolist()
    told, expected = resumed.drain_step_metrics(), whole.drain_step_metrics()
    # Evictions from before the break are forgotten, so fewer can be told to have been false.
    assert told.pop(FALSE) <= expected.pop(FALSE)
    assert told == expected


def _write_rounds(ledger: StateLedger, schedule: Sequence[Round]) -> None:
    step = ledger.state_dict()["step"]
    for act, (rows,) in schedule:
        if isinstance(act, Step):
            step += act.after
            ledger.begin_step(step)
        elif isinstance(act, Wipe):
            ledger.wipe()
        put(ledger, *[write.key for write in rows])


def test_a_load_makes_no_false_signal() -> None:
    """Neither what was evicted before, nor what was counted, is held against what comes after."""
    ledger = make(2)
    put(ledger, 1, 2, 3)
    ledger.load_state_dict(ledger.state_dict())
    put(ledger, 1)
    assert ledger.drain_step_metrics() == {EVICTIONS: 1, FALSE: 0, FRESH: 1, RESIDENT: 2}


def save_after(steps: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Write some keys in each step, more than fit; return the state and the keys."""
    ledger = StateLedger(StoreLimits(capacity=6), shape=())
    for step in range(steps):
        ledger.begin_step(step)
        put(ledger, 2 * step + ledger.rank, 0)
    return ledger.state_dict(), ledger.resident_keys


def load_merged(state: dict[str, Any], lost: Sequence[int]) -> tuple[Any, ...]:
    """Load a merged state, write keys that had been evicted; return what was kept and counted."""
    heard = logging.getLogger("aegir_stream")
    lines = _Lines()
    heard.addHandler(lines)
    heard.setLevel(logging.INFO)
    try:
        ledger = StateLedger(StoreLimits(capacity=6), shape=())
        ledger.load_state_dict(state)
    finally:
        heard.removeHandler(lines)
    loaded = ledger.resident_keys
    values = ledger.read(range(40)).states.tolist()
    put(ledger, *(lost if ledger.rank == 0 else []))
    return loaded, values, ledger.drain_step_metrics(), lines.told


class _Lines(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.levelname, record.getMessage()))


def test_two_ranks_go_on_as_one(two_ranks: Ranks) -> None:
    """All entries come together in the order of last writes; the oldest find no room, silently."""
    states, kept = zip(*two_ranks.run(save_after, 10), strict=True)
    merged = saved_and_loaded(merge_ledger_states(states))
    by_hash = {key_hash(key): key for key in range(40)}
    step_of = {key: key // 2 for key in range(40)} | {0: 9}
    ordered = sorted(
        (step_of[by_hash[key]], rank, place, key)
        for rank, keys in enumerate(kept)
        for place, key in enumerate(keys)
    )
    lost = [key for key in range(1, 20) if key_hash(key) not in {*kept[0], *kept[1]}]
    loaded, values, counts, lines = load_merged(merged, lost)
    assert loaded == tuple(key for *_, key in ordered)[-6:]
    assert [values[by_hash[key]] for key in loaded] == [by_hash[key] for key in loaded]
    dropped = len(ordered) - 6
    line = f"The ledger of 2 ranks goes on with 1: rank 0 keeps 6 entries, {dropped} did not fit"
    assert lines == [("INFO", line)]
    assert (counts[FALSE], counts[FRESH]) == (0, len(lost)), "evictions from before are forgotten"


def test_one_rank_goes_on_as_two(two_ranks: Ranks) -> None:
    """Every entry moves to its new owner, in the order of last writes; none is on both."""
    state, kept = save_after(10)
    lost = [key for key in range(1, 20) if key_hash(key) not in kept]
    results = two_ranks.run(load_merged, saved_and_loaded(state), lost)
    for rank, (loaded, values, counts, lines) in enumerate(results):
        assert loaded == tuple(key for key in kept if owner_of(key, world_size=2) == rank)
        assert {v for v in values if v} <= {float(k) for k in range(20) if key_hash(k) in kept}
        assert counts[FALSE] == 0
        ((level, line),) = lines
        assert (level, line.partition(": ")[::2]) == (
            "INFO",
            (
                "The ledger of 1 ranks goes on with 2",
                f"rank {rank} keeps {len(loaded)} entries, 0 did not fit",
            ),
        )
    assert sum(counts[FRESH] for *_, counts, _ in results) == len(lost)


def test_another_number_of_ranks_needs_the_states_of_all(two_ranks: Ranks) -> None:
    """Entries of a rank that is not there would be lost without a word."""
    (state, _), _ = two_ranks.run(save_after, 2)
    with pytest.raises(StateError, match="the ledger states of all 2 ranks, got none of rank 1"):
        make(6).load_state_dict(state)


def test_states_of_different_steps_are_not_merged() -> None:
    """They are not of one checkpoint."""
    ledger = make()
    before = ledger.state_dict()
    ledger.begin_step(3)
    with pytest.raises(StateError, match=r"one step of one run, got \(ranks, step\)"):
        merge_ledger_states([before, ledger.state_dict()])
    with pytest.raises(StateError, match="one step of one run"):
        merge_ledger_states([])


@pytest.mark.parametrize(
    ("states", "starts", "error", "message"),
    [
        (torch.zeros(2), None, ShapeError, r"shape \(1,\), got \(2,\)"),
        (torch.zeros(1, 3), None, ShapeError, r"shape \(1,\), got \(1, 3\)"),
        (torch.zeros(1, dtype=torch.float64), None, OptionError, "torch.float32, got torch.float"),
        (torch.zeros(1), [True, False], ShapeError, "1 starts, one for each key, got 2"),
    ],
)
def test_states_that_do_not_fit_are_refused(
    states: torch.Tensor, starts: list[bool] | None, error: type[Exception], message: str
) -> None:
    """By name of what was expected, before anything travels."""
    ledger = make()
    with pytest.raises(error, match=message):
        ledger.write([1], states, starts=starts)
    assert ledger.resident_keys == ()


def test_the_counts_are_there_before_the_first_window() -> None:
    """A fixed set of four keys whatever happened, so that every rank reduces the same."""
    ledger = make()
    assert ledger.last_extra_metrics == dict.fromkeys(LEDGER_METRICS, 0.0)
    assert ledger.drain_step_metrics() == ledger.last_extra_metrics


def test_text_names_a_stream_as_well() -> None:
    """Keys may be text or whole numbers."""
    ledger = make()
    ledger.write(["a", 1], torch.tensor([5.0, 6.0]))
    assert ledger.read([1, "b", "a"]).states.tolist() == [6.0, 0.0, 5.0]
