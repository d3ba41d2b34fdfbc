from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.patching.occasions import Occasions, TimeAccount
from aegir_stream.testing import ManualClock


@given(st.none() | st.integers(1, 9), st.frozensets(st.integers(1, 50), max_size=5))
def test_the_occasions_of_a_training(every: int | None, steps: frozenset[int]) -> None:
    """Every so many steps, and at chosen ones; each step once."""
    occasions = Occasions(every_steps=every, steps=steps, start=True)
    multiples = set(range(every, 51, every)) if every else set()
    assert {step for step in range(1, 51) if occasions.after(step)} == multiples | steps


@given(
    st.floats(0.01, 1.0),
    st.lists(st.tuples(st.floats(0.0, 9.0), st.booleans()), max_size=30),
    st.floats(0.01, 5.0),
)
def test_sweeps_that_are_alike_keep_to_their_share(
    share: float, steps: list[tuple[float, bool]], takes_s: float
) -> None:
    """Behind the first sweep, which is always afforded, they never have more than their share."""
    clock = ManualClock()
    account = TimeAccount(share, clock=clock)
    began, sweeps = clock.monotonic(), 0
    for step_s, is_occasion in steps:
        clock.advance(step_s)
        if is_occasion and account.affords_another():
            with account.charged():
                clock.advance(takes_s)
            sweeps += 1
            assert account.spent_s == pytest.approx(sweeps * takes_s)
            assert sweeps == 1 or account.spent_s <= share * (clock.monotonic() - began) + 1e-6


def test_a_sweep_that_fails_is_charged_as_well() -> None:
    """The training stood still for it."""
    clock = ManualClock()
    account = TimeAccount(None, clock=clock)

    def fail() -> None:
        with account.charged():
            clock.advance(2.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert account.spent_s == 2.0
    assert account.affords_another()
