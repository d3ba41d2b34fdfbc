from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.mixing.schedule import Choice, Schedule, splitmix64

GOLDEN = 0x9E3779B97F4A7C15


def test_the_generator_is_splitmix64() -> None:
    """The first numbers of seed 1234567 are those of the published generator."""
    assert [splitmix64(1234567 + n * GOLDEN) for n in range(1, 6)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.integers(), st.integers(0, 2**20), st.integers(0, 2**40))
def test_a_draw_is_a_function_of_seed_shard_and_number(seed: int, shard: int, draw: int) -> None:
    """The same draw is the same number in [0, 1), whoever asks and whatever was asked before."""
    uniform = Schedule(seed, shard).uniform(draw)
    schedule = Schedule(seed, shard)
    schedule.uniform(draw + 1)
    assert schedule.uniform(draw) == uniform
    assert 0.0 <= uniform < 1.0


def chi_squared(counts: list[int]) -> float:
    """Return how far counts are from being equal."""
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 / mean for count in counts)


@pytest.mark.parametrize("lag", ["draws", "shards", "seeds"])
def test_draws_are_uniform_and_neighbours_independent(lag: str) -> None:
    """Neighbouring draws, shards and seeds fall into 64 pairs of intervals equally often."""
    if lag == "draws":
        numbers = [Schedule(1, 2).uniform(n) for n in range(20_001)]
    elif lag == "shards":
        numbers = [Schedule(1, n).uniform(7) for n in range(20_001)]
    else:
        numbers = [Schedule(n, 0).uniform(7) for n in range(20_001)]
    pairs = Counter((int(a * 8), int(b * 8)) for a, b in pairwise(numbers))
    # 63 degrees of freedom: 130 is exceeded with a probability of 1e-6.
    assert chi_squared([pairs[i, j] for i in range(8) for j in range(8)]) < 130


def test_shards_and_seeds_share_no_draws() -> None:
    """No shard goes through the numbers of another one, nor of a neighbouring seed, later on."""
    schedules = [Schedule(seed, shard) for seed in range(2) for shard in range(16)]
    drawn = [schedule.uniform(draw) for schedule in schedules for draw in range(500)]
    assert len(set(drawn)) == len(drawn)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.data())
def test_a_choice_gives_each_reader_an_interval_of_its_weight(
    weights: list[float], data: st.DataObject
) -> None:
    """The intervals of the readers that are left follow each other, as long as their weights."""
    indices = st.sets(st.sampled_from(range(len(weights))), min_size=1)
    left = sorted(data.draw(indices))
    choice, total = Choice(weights, left), sum(weights[reader] for reader in left)
    begin = 0.0
    for reader in left:
        middle = (begin + weights[reader] / 2) / total
        assert choice.at(middle) == reader
        begin += weights[reader]
    assert choice.at(1 - 2**-53) in left
