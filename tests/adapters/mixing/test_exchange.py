from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from aegir_adapters.mixing.exchange import Key, Route, key_hash, owner_of, world_of
from aegir_stream.errors import OptionError

from .ranks import Ranks

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]

rows_of_two = st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=2, max_size=2)


def carry(owners: list[list[int]]) -> dict[str, Any]:
    """Send (rank, row) to the owners and back, as rank of a group."""
    rank, _ = world_of()
    numbers = torch.arange(len(owners[rank]))
    rows = torch.stack([torch.full_like(numbers, rank), numbers], dim=1)
    route = Route(owners[rank])
    arrived = route.to_owners(rows)
    answers = route.back(arrived * 10)
    return {"arrived": arrived.tolist(), "answers": answers.tolist()}


def carry_dtypes() -> list[tuple[torch.dtype, list[Any], tuple[int, ...]]]:
    """Send rows of several dtypes and shapes to the other rank; the second rank has no row."""
    rank, _ = world_of()
    arrived = []
    for dtype in DTYPES:
        rows = torch.tensor([[[0, 1], [1, 0], [1, 1]]] * 3).to(dtype)
        rows = rows if rank == 0 else rows[:0]
        got = Route([1] * len(rows)).to_owners(rows.transpose(1, 2))
        arrived.append((got.dtype, got.float().tolist(), tuple(got.shape)))
    return arrived


def count_collectives() -> int:
    """Return how often two ranks meet for one way there and back."""
    calls = 0
    real = distributed.all_to_all_single

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*arguments, **options)

    distributed.all_to_all_single = counted
    try:
        carry([[0, 1], []])
    finally:
        distributed.all_to_all_single = real
    return calls


@settings(max_examples=40)
@given(owners=rows_of_two)
def test_rows_reach_their_owners_and_answers_come_back_in_order(
    two_ranks: Ranks, owners: list[list[int]]
) -> None:
    """Owners get rows by rank and row; who asked gets each answer where its row stood."""
    results = two_ranks.run(carry, owners)
    for rank, result in enumerate(results):
        assert result["arrived"] == [
            [sender, row]
            for sender in (0, 1)
            for row, owner in enumerate(owners[sender])
            if owner == rank
        ]
        assert result["answers"] == [[rank * 10, row * 10] for row in range(len(owners[rank]))]


def test_every_dtype_travels(two_ranks: Ranks) -> None:
    """Also those that gloo refuses, rows that are not contiguous, and no rows at all."""
    first, second = two_ranks.run(carry_dtypes)
    transposed = [[[0, 1, 1], [1, 0, 1]]] * 3
    assert second == [(dtype, transposed, (3, 2, 3)) for dtype in DTYPES]
    assert first == [(dtype, [], (0, 2, 3)) for dtype in DTYPES]


def test_a_rank_without_rows_joins_every_collective(two_ranks: Ranks) -> None:
    """Counts, rows and answers: three meetings for every rank, whoever has something to send."""
    assert two_ranks.run(count_collectives) == [3, 3]


def test_one_process_needs_no_group() -> None:
    """Without a process group all rows are our own, in their order."""
    assert world_of() == (0, 1)
    rows = torch.arange(6).reshape(3, 2)
    route = Route([0, 0, 0])
    assert route.to_owners(rows).tolist() == route.back(rows).tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (0, 0),
        (1, 6238072747940578789),
        (-1, -5417735806833148549),
        ("", -5426141060434712860),
        ("text/web/0", -3014073267360301822),
    ],
)
def test_hashes_stay_what_they_are(key: Key, expected: int) -> None:
    """A saved ledger is found again by later releases."""
    assert key_hash(key) == expected


def test_whole_numbers_never_collide_and_spread_evenly() -> None:
    """Even if all of them are even: the owner is not what the number is modulo the ranks."""
    hashes = [key_hash(key) for key in range(0, 20_000, 2)]
    assert len(set(hashes)) == 10_000
    for world_size in (2, 3, 8):
        owned = [0] * world_size
        for each in hashes:
            owned[owner_of(each, world_size=world_size)] += 1
        # Six standard deviations of a binomial count.
        assert max(owned) - 10_000 / world_size < 6 * (10_000 / world_size) ** 0.5


@pytest.mark.parametrize("key", [2**63, -(2**63) - 1])
def test_a_number_of_more_bits_is_refused(key: int) -> None:
    """It would be taken for another one."""
    with pytest.raises(OptionError, match="text or an integer of 64 bits, got"):
        key_hash(key)
