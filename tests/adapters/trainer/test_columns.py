from __future__ import annotations

import threading
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.trainer.columns import ColumnPool, SAEColumns
from aegir_stream.errors import MalformedEventError, ShapeError


def filled(columns: SAEColumns, value: int) -> SAEColumns:
    """Write `value` into every column."""
    for column in msgspec.structs.astuple(columns):
        if isinstance(column, np.ndarray):
            column[...] = value
    return columns


@given(st.integers(0, 50), st.integers(0, 20), st.booleans())
def test_columns_have_the_size_that_they_say(records: int, k: int, completions: bool) -> None:  # noqa: FBT001
    """No two columns overlap, and together they are `size_bytes`."""
    columns, _ = ColumnPool().take(records, k, step=1, completions=completions)
    arrays = [c for c in msgspec.structs.astuple(columns) if isinstance(c, np.ndarray)]
    for number, column in enumerate(arrays):
        column[...] = number
    assert all((column == number).all() for number, column in enumerate(arrays))
    assert sum(column.nbytes for column in arrays) == columns.size_bytes
    assert (columns.records, columns.k) == (records, k)
    assert (columns.completion is not None) == completions


def test_a_step_of_the_same_size_touches_no_fresh_memory() -> None:
    """What was given back is taken again, for smaller steps too."""
    pool = ColumnPool()
    first, give_back = pool.take(100, 16, step=1)
    give_back()
    second, give_back = pool.take(90, 16, step=2, completions=False)
    assert np.shares_memory(first.indices, second.indices)
    give_back()
    third, _ = pool.take(100, 16, step=3)
    assert np.shares_memory(first.indices, third.indices)


def test_a_larger_step_gets_larger_memory() -> None:
    """The pool grows, and then stays at that size."""
    pool = ColumnPool()
    pool.take(10, 16, step=1)[1]()
    large, give_back = pool.take(1_000, 16, step=2)
    filled(large, 1)
    give_back()
    pool.take(10, 16, step=3)[1]()
    again, _ = pool.take(1_000, 16, step=4)
    assert np.shares_memory(large.indices, again.indices)


def test_memory_given_back_twice_is_lent_once() -> None:
    """A second call does not put the same memory into two hands."""
    pool = ColumnPool()
    _, give_back = pool.take(10, 4, step=1)
    give_back()
    give_back()
    one, _ = pool.take(10, 4, step=2)
    other, _ = pool.take(10, 4, step=2)
    assert not np.shares_memory(one.indices, other.indices)


def test_the_pool_keeps_no_more_than_it_may() -> None:
    """Buffers beyond the bound are freed when they come back."""
    pool = ColumnPool(max_free=2)
    loans = [pool.take(10, 4, step=1) for _ in range(5)]
    for _, give_back in loans:
        give_back()
    assert len(pool._free) == 2


def test_two_threads_never_hold_the_same_memory() -> None:
    """What one thread wrote into its columns is still there when it gives them back."""
    pool = ColumnPool()
    torn = []

    def work(mark: int) -> None:
        for step in range(300):
            columns, give_back = pool.take(20, 4, step=step)
            filled(columns, mark)
            if not (columns.indices == mark).all():
                torn.append(step)
            give_back()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torn


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("token_index", np.zeros(4, np.int32)),
        ("layer_index", np.zeros(3, np.int64)),
        ("activations", np.zeros((3, 3), np.float32)),
        ("activations", np.zeros((3, 2), np.float64)),
        ("reconstruction_loss", np.zeros((3, 1), np.float32)),
        ("completion", np.zeros(3, np.float32)),
    ],
)
def test_a_column_of_another_shape_or_dtype_is_refused(name: str, column: Any) -> None:
    """The error names the column, what was expected and what came."""
    columns, _ = ColumnPool().take(3, 2, step=1)
    with pytest.raises(ShapeError, match=rf"`{name}` of shape .* got \({column.shape[0]}"):
        msgspec.structs.replace(columns, **{name: column})


def test_a_negative_step_is_refused() -> None:
    """Steps count from 0."""
    with pytest.raises(MalformedEventError, match="got -1"):
        ColumnPool().take(1, 1, step=-1)
