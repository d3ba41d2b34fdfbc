"""Numbers as text of fixed width, whole arrays at a time.

Tables hold the text of every group of up to five digits, so that an array of numbers becomes arrays
of machine words that are stored side by side. All texts are JSON: numbers, with spaces in front
where a whole number is shorter than its cell, and the log's strings for what is no finite number.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatCells", "IntegerCells", "Piece", "Words", "holds_minus_infinity", "with_stand_ins"]

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]

_GROUP: Final = np.uint64(10_000)
_GROUP_DIGITS: Final = 4
_MOST_LOOKED_UP: Final = 5
_SPACE: Final = ord(" ")
# Adding 2**52 to 0 <= x < 2**52 leaves x, rounded to nearest (ties to even), in the low bits.
_ROUND: Final = 2.0**52
_ROUND_BITS: Final = np.float64(_ROUND).view(np.uint64)
# Of a float64: the bits behind the sign and the exponent, and how many values those two have.
_FRACTION_BITS: Final = np.uint64(52)
_BINADES: Final = 4096
_BIAS: Final = 1023


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
    BLANK: Final = np.int32(-1)
    """Is written as nothing but spaces."""

    def __init__(self, largest: int) -> None:
        self.width = next((width for width in (4, 5, 6) if largest < 10**width), 8)

    def pieces(self, values: NDArray[np.int32]) -> list[Piece]:
        """Return the texts of `values`, any shape, each 0 <= x < `LIMIT` or `BLANK`."""
        # Seen without its sign, `BLANK` is behind the last row of every table.
        numbers = values.view(np.uint32)
        return self._look_up(numbers) if self.width <= _MOST_LOOKED_UP else self._split(numbers)

    def _look_up(self, numbers: NDArray[np.uint32]) -> list[Piece]:
        fronts, lasts = _whole_numbers(self.width)
        rows = numbers.astype(np.intp)
        front = Piece(0, _take(fronts, rows))
        return [front] if self.width == _GROUP_DIGITS else [front, Piece(4, _take(lasts, rows))]

    def _split(self, numbers: NDArray[np.uint32]) -> list[Piece]:
        head = numbers // np.uint32(_GROUP)
        # From 10,000 on, only the first group goes: the second half of the table keeps zeros.
        tail = numbers - (np.maximum(head, np.uint32(1)) - np.uint32(1)) * np.uint32(_GROUP)
        np.copyto(tail, numbers, where=numbers >= self.LIMIT)
        width = self.width - _GROUP_DIGITS
        return [Piece(0, _take(_heads(width), head)), Piece(width, _take(_tails(), tail))]


class FloatCells:
    """Float32 as `d.dddde+dd`, rounded to nearest: zero, positive numbers and stand-ins.

    The decimal exponent follows from the binary one and at most one comparison, since a power of
    two and its double enclose at most one power of ten. Nine digits identify a float32 exactly.

    Args:
        digits: significant digits, 5 to 9; `-Infinity` needs `LEAST_FOR_MINUS_INFINITY`.
    """

    LEAST_FOR_MINUS_INFINITY: Final = 6
    BLANK: Final = np.float32(-8)
    """Is written as nothing but spaces."""

    def __init__(self, digits: int) -> None:
        self.width = digits + 5
        self._split = digits > _MOST_LOOKED_UP
        head_digits = _head_digits(digits)
        self._ends_offset = head_digits + 1
        self._heads = _mantissa_heads(head_digits)
        self._decades = _decades(digits)

    def pieces(self, values: NDArray[np.float32]) -> list[Piece]:
        """Return the texts of `values`, any shape, each finite and +0, > 0 or a stand-in."""
        # A subnormal float32 is a normal float64, and its bits are as wide as an index.
        scaled = values.astype(np.float64)
        bits = scaled.view(np.uint64)
        decade = _take(self._decades.carries, (bits >> _FRACTION_BITS).view(np.intp))
        decade += bits
        decade >>= _FRACTION_BITS
        decade = decade.view(np.intp)
        scaled *= _take(self._decades.scales, decade)
        scaled += _ROUND
        bits -= _ROUND_BITS
        ends = _take(self._decades.ends, decade)
        heads = self._take_groups_off(bits, ends) if self._split else bits
        return [
            Piece(0, _take(self._heads, heads.view(np.intp))),
            Piece(self._ends_offset, ends),
        ]

    @staticmethod
    def _take_groups_off(mantissa: Words, ends: Words) -> Words:
        """Move the last four digits of `mantissa` into `ends`; return the digits in front."""
        heads: Words = mantissa // _GROUP
        mantissa -= heads * _GROUP
        ends += _take(_mantissa_tails(), mantissa.view(np.intp))
        return heads


# Negative numbers are never written: powers of two stand for what else is.
_STAND_INS: Final = {b'"NaN"': -1.0, b'"Infinity"': -2.0, b'"-Infinity"': -4.0, b"": -8.0}


def with_stand_ins(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `values`, or a copy with stand-ins in place of what is not finite."""
    if np.isfinite(values).all():
        return values
    nan, infinity, minus_infinity, _ = map(np.float32, _STAND_INS.values())
    stand_ins = np.where(np.isnan(values), nan, values)
    np.copyto(stand_ins, infinity, where=values == np.inf)
    np.copyto(stand_ins, minus_infinity, where=values == -np.inf)
    return stand_ins


def holds_minus_infinity(stand_ins: NDArray[np.float32]) -> bool:
    """Return whether `-Infinity` is among what `with_stand_ins` returned."""
    if stand_ins.min(initial=0) >= 0:
        return False
    return bool((stand_ins == _STAND_INS[b'"-Infinity"']).any())


def _take(table: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    # All indices are within the table; `clip` is the mode that does not buffer to check them.
    return table.take(index, mode="clip")


def _head_digits(digits: int) -> int:
    return digits if digits <= _MOST_LOOKED_UP else digits - _GROUP_DIGITS


# -- tables ------------------------------------------------------------------------------------


class _Decades(NamedTuple):
    """How to find the decade of a number, and what to write for it.

    A decade is numbered by the first binary exponent that lies in it as a whole. Within a binary
    exponent, values from the next power of ten on already belong to the next number: adding the
    `carries` of the exponent to the bit pattern carries exactly those over.

    Attributes:
        carries: (4096,) uint64, by sign and biased exponent of a float64.
        scales: (4096,) float64, by decade: what makes the digits a whole number.
        ends: (4096,) uint32 or uint64, by decade: `e+dd` in the last four bytes; zero bytes in
            front, to which four digits are added, if the digits do not all stand in the head.
    """

    carries: NDArray[np.uint64]
    scales: NDArray[np.float64]
    ends: Words


@cache
def _decades(digits: int) -> _Decades:
    carries, scales = np.zeros(_BINADES, np.uint64), np.zeros(_BINADES)
    exponents = np.zeros(_BINADES, np.int64)
    for binary in range(-149, 128):
        binade = _BIAS + binary
        first = np.ldexp(np.float32(1), binary)
        exponents[binade] = exponent = _exponent(first, digits)
        scales[binade] = _scale(exponent, digits)
        next_binade = np.uint64((binade + 1) << int(_FRACTION_BITS))
        threshold = np.float64(_first_of_decade(exponent + 1, digits)).view(np.uint64)
        carries[binade] = max(next_binade, threshold) - threshold
    ends = _ends(exponents, digits)
    _add_stand_ins(scales, ends, digits)
    return _Decades(carries, scales, ends)


def _ends(exponents: NDArray[np.int64], digits: int) -> Words:
    width = digits + 4 - _head_digits(digits)
    texts = [(b"e%+03d" % exponent).rjust(width, b"\0") for exponent in exponents]
    return np.array(texts, f"S{width}").view(f"u{width}")


def _add_stand_ins(scales: NDArray[np.float64], ends: Words, digits: int) -> None:
    """Make each stand-in the number of its text's row behind all heads."""
    head_digits = _head_digits(digits)
    group = 10 ** (digits - head_digits)
    for row, (text, value) in enumerate(_STAND_INS.items(), start=10**head_digits):
        binade = int(np.float64(value).view(np.uint64) >> _FRACTION_BITS)
        scales[binade] = row * group / value
        end = text.ljust(digits + 5)[head_digits + 1 :][: ends.itemsize]
        ends[binade] = np.frombuffer(end, ends.dtype)[0]
        if group > 1:
            # The four zeros behind the row's number are added to it: wrapping round is meant.
            ends[binade : binade + 1] -= _mantissa_tails()[:1]


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
def _mantissa_heads(head_digits: int) -> NDArray[np.uint64]:
    """Return `d.` and further digits, then the beginnings of the stand-ins' texts."""
    integers = _digits(head_digits)
    texts = np.zeros((len(integers) + len(_STAND_INS), 8), np.uint8)
    texts[: len(integers), 0] = integers[:, 0]
    texts[: len(integers), 1] = ord(".")
    texts[: len(integers), 2 : head_digits + 1] = integers[:, 1:]
    for row, text in enumerate(_STAND_INS, start=len(integers)):
        texts[row] = np.frombuffer(text.ljust(8)[:8], np.uint8)
    return texts.reshape(-1).view(np.uint64)


@cache
def _mantissa_tails() -> NDArray[np.uint64]:
    """Return four digits, zero bytes behind."""
    texts = np.zeros((10**_GROUP_DIGITS, 8), np.uint8)
    texts[:, :_GROUP_DIGITS] = _digits(_GROUP_DIGITS)
    return texts.reshape(-1).view(np.uint64)


@cache
def _whole_numbers(width: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return the first four and the last characters of right-aligned whole numbers; a blank."""
    texts = _with_blank(_right_aligned(width))
    return _words(texts[:, :_GROUP_DIGITS]).view(np.uint32), texts[:, -1].copy()


@cache
def _tails() -> Words:
    """Return four characters: half with leading spaces, half with leading zeros; a blank."""
    return _words(_with_blank(np.concatenate([_right_aligned(4), _digits(4)])))


@cache
def _heads(width: int) -> Words:
    """Return whole numbers of at most `width` digits, right-aligned, 0 as a blank; a blank."""
    texts = _with_blank(_right_aligned(width))
    texts[0] = _SPACE
    return _words(texts)


def _words(texts: NDArray[np.uint8]) -> Words:
    return np.ascontiguousarray(texts).reshape(-1).view(f"u{texts.shape[1]}")


def _with_blank(texts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([texts, np.full_like(texts[:1], _SPACE)])


def _right_aligned(width: int) -> NDArray[np.uint8]:
    texts = _digits(width)
    leading = texts[:, :-1]
    leading[np.cumsum(leading != ord("0"), axis=1) == 0] = _SPACE
    return texts


def _digits(width: int) -> NDArray[np.uint8]:
    """Return the digits of 0 .. 10**width - 1, one row per number."""
    powers = 10 ** np.arange(width - 1, -1, -1)
    return (np.arange(10**width)[:, np.newaxis] // powers % 10 + ord("0")).astype(np.uint8)
