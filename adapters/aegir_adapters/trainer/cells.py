"""Numbers as text of fixed width, whole arrays at a time.

A number is cut into groups of four digits; a table holds the text of every group, so that an array
of numbers becomes arrays of machine words that are stored side by side. All texts are JSON numbers,
with spaces in front where a whole number is shorter than its cell.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatCells", "IntegerCells", "Piece", "Words", "all_normal", "is_normal"]

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]

_GROUP: Final = np.uint32(10_000)
_ONE: Final = np.uint32(1)
_SPACE: Final = ord(" ")
# Adding 2**52 to 0 <= x < 2**52 leaves x, rounded to nearest (ties to even), in the low bits.
_ROUND: Final = 2.0**52
_ROUND_BITS: Final = np.float64(_ROUND).view(np.uint64)
_MANTISSA_BITS: Final = np.uint32(23)
_SMALLEST_NORMAL_BITS: Final = np.uint32(0x0080_0000)
_NORMAL_PATTERNS: Final = np.uint32(0x7F00_0000)
_INFINITY_BITS: Final = np.uint32(0x7F80_0000)


class Piece(NamedTuple):
    """A part of every cell: `words` are stored `offset` bytes behind the cell's beginning."""

    offset: int
    words: Words


class IntegerCells:
    """Whole numbers from 0 on, right-aligned in `width` bytes.

    Args:
        largest: the largest number that has to fit; numbers from `LIMIT` on never do.
    """

    LIMIT: Final = 10**8

    def __init__(self, largest: int) -> None:
        sizes = (0, 1, 2)
        self._head_bytes = next((size for size in sizes if largest < 10 ** (size + 4)), 4)
        self.width = self._head_bytes + 4

    def pieces(self, values: NDArray[np.int32]) -> list[Piece]:
        """Return the texts of `values`, any shape, each 0 <= x < `LIMIT`."""
        numbers = values.view(np.uint32)
        if not self._head_bytes:
            return [Piece(0, _take(_tails(), numbers))]
        head = numbers // _GROUP
        # From 10,000 on, only the first group goes: the second half of the table keeps zeros.
        tail = numbers - (np.maximum(head, _ONE) - _ONE) * _GROUP
        return [
            Piece(0, _take(_heads(self._head_bytes), head)),
            Piece(self._head_bytes, _take(_tails(), tail)),
        ]


class FloatCells:
    """Positive normal float32, and zero, as `d.dddde+dd`, rounded to nearest.

    The decimal exponent follows from the binary one and at most one comparison, since a power of
    two and its double enclose at most one power of ten. Nine digits identify a float32 exactly.

    Args:
        digits: significant digits, 5 to 9.
    """

    def __init__(self, digits: int) -> None:
        self.width = digits + 5
        self._tail_offset = digits - 3
        self._mantissa_heads = _mantissa_heads(digits)
        self._decades = _decades(digits)

    def pieces(self, values: NDArray[np.float32]) -> list[Piece]:
        """Return the texts of `values`, any shape, each +0 or `is_normal`."""
        decades = self._decades
        bits = values.view(np.uint32)
        carry = _take(decades.carries, bits >> _MANTISSA_BITS)
        decade = ((bits + carry) >> _MANTISSA_BITS).astype(np.intp)
        scaled = values * _take(decades.scales, decade)
        scaled += _ROUND
        mantissa = scaled.view(np.uint64)
        mantissa -= _ROUND_BITS
        head = mantissa // _GROUP
        mantissa -= head * _GROUP
        tail = _take(_mantissa_tails(), mantissa.view(np.intp))
        tail |= _take(decades.exponents, decade)
        return [
            Piece(0, _take(self._mantissa_heads, head.view(np.intp))),
            Piece(self._tail_offset, tail),
        ]


def is_normal(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where `values` are positive, finite and not subnormal."""
    # On the bit patterns, because computing with a signalling NaN would warn.
    return values.view(np.uint32) - _SMALLEST_NORMAL_BITS < _NORMAL_PATTERNS


def all_normal(values: NDArray[np.float32]) -> bool:
    """Return whether all `values` are positive, finite and not subnormal."""
    bits = values.view(np.uint32)
    least, most = bits.min(initial=_SMALLEST_NORMAL_BITS), bits.max(initial=_SMALLEST_NORMAL_BITS)
    return bool(least >= _SMALLEST_NORMAL_BITS and most < _INFINITY_BITS)


def _take(table: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    # All indices are within the table; `clip` is the mode that does not buffer to check them.
    return table.take(index, mode="clip")


# -- tables ------------------------------------------------------------------------------------


class _Decades(NamedTuple):
    """How to find the decade of a float32, and what to write for it.

    A decade is numbered by the first binary exponent that lies in it as a whole. Within a binary
    exponent, values from the next power of ten on already belong to the next number: adding the
    `carries` of the exponent to the bit pattern carries exactly those over.

    Attributes:
        carries: (256,) uint32, by biased binary exponent.
        scales: (256,) float64, by decade: what makes the digits a whole number.
        exponents: (256,) uint64, by decade: `e+dd` in the last four bytes.
    """

    carries: NDArray[np.uint32]
    scales: NDArray[np.float64]
    exponents: NDArray[np.uint64]


@cache
def _decades(digits: int) -> _Decades:
    carries, scales, exponents = np.zeros(256, np.uint32), np.zeros(256), np.zeros(256, np.int64)
    for binade in range(1, 255):
        first = np.ldexp(np.float32(1), binade - 127)
        exponents[binade] = exponent = _exponent(first, digits)
        scales[binade] = _scale(exponent, digits)
        next_binade = np.uint32((binade + 1) << 23)
        threshold = _first_of_decade(exponent + 1, digits).view(np.uint32)
        carries[binade] = max(next_binade, threshold) - threshold
    texts = np.array([b"\0\0\0\0e%+03d" % exponent for exponent in exponents], "S8")
    return _Decades(carries, scales, texts.view(np.uint64))


def _scale(exponent: int, digits: int) -> float:
    return float(f"1e{digits - 1 - exponent}")


def _exponent(value: np.float32, digits: int) -> int:
    """Return the decimal exponent of `value` after rounding to `digits`."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _first_of_decade(exponent: int, digits: int) -> np.float32:
    """Return the smallest float32 that rounds to 10**exponent; infinity beyond the largest."""
    scale = _scale(exponent - 1, digits)
    estimate = min((10**digits - 0.5) / scale, float(np.finfo(np.float32).max))
    candidate: np.float32 = np.nextafter(np.float32(estimate), np.float32(0))
    while np.rint(np.float64(candidate) * scale) < 10**digits:
        with np.errstate(over="ignore"):
            candidate = np.nextafter(candidate, np.float32(np.inf))
    return candidate


@cache
def _mantissa_heads(digits: int) -> NDArray[np.uint64]:
    """Return `d.` and the digits in front of the last four, zero bytes behind."""
    decimals = digits - 5
    integers = _digits(1 + decimals)
    texts = np.zeros((len(integers), 8), np.uint8)
    texts[:, 0] = integers[:, 0]
    texts[:, 1] = ord(".")
    texts[:, 2 : 2 + decimals] = integers[:, 1:]
    return texts.reshape(-1).view(np.uint64)


@cache
def _mantissa_tails() -> NDArray[np.uint64]:
    """Return four digits, zero bytes behind."""
    texts = np.zeros((_GROUP, 8), np.uint8)
    texts[:, :4] = _digits(4)
    return texts.reshape(-1).view(np.uint64)


@cache
def _tails() -> NDArray[np.uint32]:
    """Return four characters: leading spaces in the first half, leading zeros in the second."""
    return np.concatenate([_right_aligned(4), _digits(4)]).reshape(-1).view(np.uint32)


@cache
def _heads(width: int) -> Words:
    """Return whole numbers of at most `width` digits, right-aligned, 0 as nothing but spaces."""
    texts = _right_aligned(width)
    texts[0] = _SPACE
    return texts.reshape(-1).view(f"u{width}")


def _right_aligned(width: int) -> NDArray[np.uint8]:
    texts = _digits(width)
    leading = texts[:, :-1]
    leading[np.cumsum(leading != ord("0"), axis=1) == 0] = _SPACE
    return texts


def _digits(width: int) -> NDArray[np.uint8]:
    """Return the digits of 0 .. 10**width - 1, one row per number."""
    powers = 10 ** np.arange(width - 1, -1, -1)
    return (np.arange(10**width)[:, np.newaxis] // powers % 10 + ord("0")).astype(np.uint8)
