"""Lines of one width: a template, and the numbers that are stored into it."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aegir_adapters.trainer.cells import FloatCells, IntegerCells, Words

__all__ = ["RowLayout"]

Cells: TypeAlias = IntegerCells | FloatCells
Lines: TypeAlias = NDArray[np.uint8]

# Larger blocks leave the L2 cache; smaller ones take the interpreter lock from training more often.
_BLOCK_NUMBERS: Final = 32_768
_COMMA: Final = ord(",")
_SPACE: Final = ord(" ")


class _Scalar(NamedTuple):
    place: int
    words: Words


class _Array(NamedTuple):
    place: int
    stride: int
    cells: Cells
    values: NDArray[Any]


class RowLayout:
    """A line with blanks, built from left to right, and what stands in the blanks of each row.

    Args:
        kept: (n, k) bool, the array elements that are no blanks; commas stand only between those.
            `None` if all are.
    """

    def __init__(self, *, kept: NDArray[np.bool_] | None) -> None:
        self._commas = None if kept is None else _commas(kept)
        self._template = bytearray()
        self._block = _BLOCK_NUMBERS
        self._scalars: list[_Scalar] = []
        self._arrays: list[_Array] = []

    def text(self, text: bytes) -> None:
        """Add text that is the same in all lines."""
        self._template += text

    def scalar(self, cells: Cells, values: NDArray[Any]) -> None:
        """Add a number per line; `values` is (n,)."""
        place = len(self._template)
        # One call for all lines: per block, the calls would cost more than the work.
        self._scalars += [
            _Scalar(place + piece.offset, piece.words) for piece in cells.pieces(values)
        ]
        self._template += b" " * cells.width

    def array(self, cells: Cells, values: NDArray[Any]) -> None:
        """Add a JSON array of numbers per line; `values` is (n, k)."""
        self._block = min(self._block, max(1, _BLOCK_NUMBERS // max(1, values.shape[1])))
        element = b" " * cells.width
        self._arrays.append(_Array(len(self._template) + 1, cells.width + 1, cells, values))
        self._template += b"[" + b",".join([element] * values.shape[1]) + b"]"

    def render(self, records: int) -> bytes:
        """Return the lines."""
        # Numbers are stored in place: `getvalue` hands the buffer over without a copy.
        memory = BytesIO(bytes(self._template) * records)
        self._fill(
            np.frombuffer(memory.getbuffer(), np.uint8).reshape(records, len(self._template))
        )
        return memory.getvalue()

    def _fill(self, lines: Lines) -> None:
        for start in range(0, len(lines), self._block):
            rows = slice(start, start + self._block)
            for place, words in self._scalars:
                _column(lines[rows], place, words.dtype)[:] = words[rows]
            for array in self._arrays:
                self._store(array, rows, lines[rows])

    def _store(self, array: _Array, rows: slice, lines: Lines) -> None:
        for offset, words in array.cells.pieces(array.values[rows]):
            _columns(lines, array, offset, words.dtype)[:] = words
        if self._commas is not None:
            _columns(lines, array, -1, np.dtype(np.uint8))[:, 1:] = self._commas[rows, 1:]


def _column(lines: Lines, place: int, dtype: np.dtype[Any]) -> Words:
    """Return the machine word at `place` of each line, as a view."""
    return np.ndarray(len(lines), dtype, lines, place, lines.strides[:1])


def _columns(lines: Lines, array: _Array, offset: int, dtype: np.dtype[Any]) -> Words:
    """Return the machine word at `offset` of each of the array's cells, as a view."""
    strides = (lines.strides[0], array.stride)
    return np.ndarray(array.values[: len(lines)].shape, dtype, lines, array.place + offset, strides)


def _commas(kept: NDArray[np.bool_]) -> Lines:
    """Return what stands in front of each element: a comma if it is kept, and not the first."""
    commas = kept.view(np.uint8) * np.uint8(_COMMA - _SPACE) + np.uint8(_SPACE)
    commas[np.arange(len(kept)), kept.argmax(axis=1)] = _SPACE
    return commas
