from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.views.reservoir import Reservoir, Sampled
from aegir_stream.views.shuffling import chance, shuffle
from views.features import seeded


def filled(ids: list[tuple[int, int]], size: int) -> Reservoir:
    """Return a reservoir that was offered completions."""
    reservoir = Reservoir(size=size, seed=3)
    for step, completion in ids:
        made = Sampled(step, completion, 0.0, {})
        reservoir.offer(step, completion, lambda made=made: made)  # type: ignore[misc]
    return reservoir


@given(st.integers(0, 60), st.integers(0, 40), st.integers(0, 2**32))
def test_the_order_of_completions_does_not_change_the_sample(
    number: int, size: int, seed: int
) -> None:
    """The least numbers win, whoever comes first; all are there while there is room."""
    ids = [(1 + i // 7, i % 7) for i in range(number)]
    dealt = list(ids)
    seeded(seed).shuffle(dealt)
    one, other = filled(ids, size), filled(dealt, size)
    assert one == other
    assert len(one.sample) == min(number, size)
    assert sorted(one.sample) == sorted(chance(3, *i) for i in ids)[:size]


def test_every_completion_is_as_likely_to_be_sampled() -> None:
    """Of 4000 completions a tenth is taken from each tenth, give or take chance."""
    sample = filled([(step, i) for step in range(500) for i in range(8)], 400).ordered()
    tenths = [sum(1 for one in sample if one.step // 50 == tenth) for tenth in range(10)]
    assert all(20 <= count <= 62 for count in tenths)
    assert len({one.completion for one in sample}) == 8


def test_all_orders_are_as_likely() -> None:
    """Each of the six orders of three completions comes up in a sixth of the steps."""
    orders = [tuple(shuffle([0, 1, 2], step=step, seed=0)) for step in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert all(850 < count < 1150 for count in counts)
    assert shuffle([5, 9, 2], step=4, seed=1) != shuffle([5, 9, 2], step=8, seed=2)
