from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aegir_adapters.trainer.cells import (
    FloatCells,
    IntegerCells,
    holds_minus_infinity,
    with_stand_ins,
)

POWERS_OF_TEN = [np.float32(f"1e{exponent}") for exponent in range(-44, 39)]
POWERS_OF_TWO = [np.ldexp(np.float32(1), exponent) for exponent in range(-149, 127)]


def texts(cells: FloatCells | IntegerCells, values: NDArray[Any]) -> list[str]:
    """Return what the pieces of each cell spell."""
    line = np.full((len(values), cells.width), ord("?"), np.uint8)
    for offset, words in cells.pieces(values):
        spelled = words.view(np.uint8).reshape(len(values), -1)
        room = line[:, offset : offset + spelled.shape[1]]
        room[:] = spelled[:, : room.shape[1]]
    return [bytes(row).decode() for row in line]


def neighbours(value: np.float32) -> list[np.float32]:
    """Return the positive float32 around `value`, itself included."""
    bits = int(value.view(np.int32))
    return [np.int32(near).view(np.float32) for near in range(max(bits - 3, 1), bits + 4)]


@pytest.mark.parametrize("digits", [5, 6, 7, 8, 9])
def test_every_decade_border_is_rounded_as_python_rounds_it(digits: int) -> None:
    """Around powers of ten and two, a cell holds what `%e` prints for the same digits."""
    borders = [near for power in POWERS_OF_TEN + POWERS_OF_TWO for near in neighbours(power)]
    assert texts(FloatCells(digits), np.array(borders)) == [
        f"{value:.{digits - 1}e}" for value in borders
    ]


@pytest.mark.parametrize("digits", [5, 7, 9])
def test_positive_numbers_are_rounded_as_python_rounds_them(digits: int) -> None:
    """Bit patterns drawn from all positive float32, and from the subnormal ones, are nearest."""
    rng = np.random.default_rng(0)
    bits = [rng.integers(1, most, 20_000, np.uint32) for most in (0x7F80_0000, 0x0080_0000)]
    values = np.concatenate(bits).view(np.float32)
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


@pytest.mark.parametrize("digits", [5, 6, 7, 8, 9])
def test_what_is_no_finite_number_is_the_string_of_the_log(digits: int) -> None:
    """NaN of any payload and infinity fill a cell, beside zero and the largest number."""
    signalling = np.uint32(0x7FA0_0001).view(np.float32)
    values = np.array([np.nan, signalling, np.inf, 0, np.finfo(np.float32).max], np.float32)
    stand_ins = with_stand_ins(values)
    written = [text.rstrip() for text in texts(FloatCells(digits), stand_ins)]
    assert written[:3] == ['"NaN"', '"NaN"', '"Infinity"']
    assert written[3:] == [f"{value:.{digits - 1}e}" for value in values[3:]]
    assert not holds_minus_infinity(stand_ins)


@pytest.mark.parametrize("digits", range(FloatCells.LEAST_FOR_MINUS_INFINITY, 10))
def test_minus_infinity_needs_a_cell_of_six_digits(digits: int) -> None:
    """The longest string fits from six digits on."""
    stand_ins = with_stand_ins(np.array([-np.inf, np.nan], np.float32))
    assert holds_minus_infinity(stand_ins)
    assert texts(FloatCells(digits), stand_ins)[0].rstrip() == '"-Infinity"'
    assert len('"-Infinity"') > FloatCells(FloatCells.LEAST_FOR_MINUS_INFINITY - 1).width


def test_a_blank_is_nothing_but_spaces() -> None:
    """Whatever the width of the cell, and beside numbers."""
    for largest in (7, 10_000, 100_000, 10**8 - 1):
        blank, number = texts(IntegerCells(largest), np.array([IntegerCells.BLANK, largest]))
        assert (blank.strip(), number.strip()) == ("", str(largest))
    for digits in range(5, 10):
        blank, number = texts(FloatCells(digits), np.array([FloatCells.BLANK, 1], np.float32))
        assert (blank.strip(), float(number)) == ("", 1.0)


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
