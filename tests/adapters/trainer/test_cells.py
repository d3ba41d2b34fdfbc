from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aegir_adapters.trainer.cells import FloatCells, IntegerCells

POWERS_OF_TEN = [np.float32(f"1e{exponent}") for exponent in range(-37, 39)]
POWERS_OF_TWO = [np.ldexp(np.float32(1), exponent) for exponent in range(-125, 127)]


def texts(cells: FloatCells | IntegerCells, values: NDArray[Any]) -> list[str]:
    """Return what the pieces of each cell spell."""
    line = np.full((len(values), cells.width), ord("?"), np.uint8)
    for offset, words in cells.pieces(values):
        spelled = words.view(np.uint8).reshape(len(values), -1)
        room = line[:, offset : offset + spelled.shape[1]]
        room[:] = spelled[:, : room.shape[1]]
    return [bytes(row).decode() for row in line]


def neighbours(value: np.float32) -> list[np.float32]:
    """Return the float32 around `value`, itself included."""
    bits = int(value.view(np.int32))
    return [np.int32(bits + away).view(np.float32) for away in range(-3, 4)]


@pytest.mark.parametrize("digits", [5, 6, 7, 8, 9])
def test_every_decade_border_is_rounded_as_python_rounds_it(digits: int) -> None:
    """Around powers of ten and two, a cell holds what `%e` prints for the same digits."""
    borders = [near for power in POWERS_OF_TEN + POWERS_OF_TWO for near in neighbours(power)]
    assert texts(FloatCells(digits), np.array(borders)) == [
        f"{value:.{digits - 1}e}" for value in borders
    ]


@pytest.mark.parametrize("digits", [5, 7, 9])
def test_normal_numbers_are_rounded_as_python_rounds_them(digits: int) -> None:
    """Bit patterns drawn from all positive normal float32 are rounded to nearest."""
    bits = np.random.default_rng(0).integers(0x0080_0000, 0x7F80_0000, 20_000, np.uint32)
    values = bits.view(np.float32)
    assert texts(FloatCells(digits), values) == [f"{value:.{digits - 1}e}" for value in values]


def test_a_number_just_below_a_power_of_ten_is_rounded_up_into_the_next_decade() -> None:
    """9.99996 has no five digits that begin with 9."""
    values = np.array([9.99994, 9.99996, 10.0, 0.999996, 0.0], np.float32)
    assert texts(FloatCells(5), values) == [
        "9.9999e+00",
        "1.0000e+01",
        "1.0000e+01",
        "1.0000e+00",
        "0.0000e+00",
    ]


@pytest.mark.parametrize(
    ("largest", "width"),
    [(0, 4), (9_999, 4), (10_000, 5), (99_999, 5), (100_000, 6), (10**6, 8), (2**24, 8)],
)
def test_whole_numbers_are_right_aligned_in_cells_of_one_width(largest: int, width: int) -> None:
    """A cell is as wide as the largest number needs, in the steps that words allow."""
    candidates = [0, 7, 10, 999, 1_000, 9_999, 10_000, 10_001, 65_535, 99_999, 100_000, 2**20]
    values = np.array([*(c for c in candidates if c < largest), largest], np.int32)
    cells = IntegerCells(largest)
    assert cells.width == width
    assert texts(cells, values) == [f"{value:{width}d}" for value in values]


def test_numbers_of_both_groups_of_digits_are_spelled_right() -> None:
    """Every id up to 10,000, and every 997th up to 2**24."""
    values = np.concatenate([np.arange(10_001), np.arange(10_000, 2**24, 997)]).astype(np.int32)
    assert texts(IntegerCells(2**24), values) == [f"{value:8d}" for value in values]
