r"""SAE records as JSON lines, made by whole-array operations.

All lines of a call have the same width: a template holds the text that never changes, and the
numbers are stored into it as the words of `cells`. What a line does not need is spaces, which JSON
allows between its tokens. Records with a number that has no cell (an id of nine digits, a negative
loss) are written by the core's encoder instead, one by one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from aegir_adapters.trainer.cells import FloatCells, IntegerCells, holds_minus_infinity
from aegir_adapters.trainer.columns import Float32, Int32, SAEColumns
from aegir_adapters.trainer.rows_exact import exact_lines
from aegir_adapters.trainer.rows_fit import FittedColumns, fit
from aegir_adapters.trainer.rows_layout import RowLayout
from aegir_stream.errors import OptionError
from aegir_stream.events import PassName

__all__ = ["Precision", "RowEncoder", "encode_rows"]

_MOST_DIGITS: Final = 9


class Precision(Struct, frozen=True, kw_only=True):
    """How many significant digits are written.

    Attributes:
        activations: of each activation, 5 to 9.
        losses: of the reconstruction loss, 7 to 9.

    Raises:
        OptionError: a number of digits is out of its range.
    """

    activations: int = 5
    losses: int = 7

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_digits("activations", self.activations, least=5)
        _check_digits("losses", self.losses, least=7)

    @classmethod
    def exact(cls) -> Precision:
        """Return the precision from which a float32 is read back bit by bit."""
        return cls(activations=9, losses=9)

    def by_field(self) -> dict[str, int]:
        """Return the digits by field of `SAELogRecord`, as `Open.precision` declares them."""
        return {
            "top_feature_activations": self.activations,
            "reconstruction_loss": self.losses,
        }


def _check_digits(name: str, digits: int, *, least: int) -> None:
    if not least <= digits <= _MOST_DIGITS:
        raise OptionError(
            f"Expected {least} to {_MOST_DIGITS} digits for {name}, got {digits}",
            hint="Nine digits are exact float32",
        )


def encode_rows(columns: SAEColumns, *, precision: Precision | None = None) -> bytes:
    """Return the records as JSON lines: `RowEncoder.encode` for a single call."""
    return RowEncoder(precision).encode(columns)


class RowEncoder:
    r"""Writes columns as JSON lines that any reader parses as `SAELogRecord`.

    Fields stand in the order of `SAELogRecord`, each line ends with exactly one ``\n``, numbers are
    rounded to nearest. NaN and infinities are the strings of the log; a step with `-Infinity` has
    activations of at least six digits, whose cells it fits. Records with a number that does not fit
    the cells are written exactly, with the shortest digits. Thread-safe: no call changes it.

    Args:
        precision: significant digits to write.
    """

    def __init__(self, precision: Precision | None = None) -> None:
        self.precision = precision or Precision()
        self._activations = FloatCells(self.precision.activations)
        self._losses = FloatCells(self.precision.losses)

    def encode(self, columns: SAEColumns) -> bytes:
        """Return the records of `columns`, in their order.

        Raises:
            MalformedEventError: an id is negative.
        """
        fitted = fit(columns)
        layout = self._lay_out(fitted, step=columns.step, pass_=columns.pass_)
        lines = layout.render(columns.records)
        return _with_exact(lines, columns, fitted.odd) if fitted.odd.any() else lines

    def _lay_out(self, columns: FittedColumns, *, step: int, pass_: PassName) -> RowLayout:
        layout = RowLayout(kept=columns.kept)
        layout.text(b'{"step":%d,"token_index":' % step)
        layout.scalar(_cells(columns.token_index), columns.token_index)
        layout.text(b',"layer_index":')
        layout.scalar(_cells(columns.layer_index), columns.layer_index)
        layout.text(b',"top_feature_indices":')
        layout.array(_cells(columns.indices), columns.indices)
        layout.text(b',"top_feature_activations":')
        layout.array(self._activation_cells(columns.activations), columns.activations)
        layout.text(b',"reconstruction_loss":')
        layout.scalar(self._losses, columns.reconstruction_loss)
        if columns.completion is not None:
            layout.text(b',"completion":')
            layout.scalar(_cells(columns.completion), columns.completion)
        if pass_ != "loss":
            layout.text(b',"pass":"%s"' % pass_.encode())
        layout.text(b"}\n")
        return layout

    def _activation_cells(self, activations: Float32) -> FloatCells:
        least = FloatCells.LEAST_FOR_MINUS_INFINITY
        if self.precision.activations < least and holds_minus_infinity(activations):
            return FloatCells(least)
        return self._activations


def _cells(column: Int32) -> IntegerCells:
    return IntegerCells(int(column.max(initial=0)))


def _with_exact(lines: bytes, columns: SAEColumns, odd: NDArray[np.bool_]) -> bytes:
    rows = np.flatnonzero(odd)
    width = len(lines) // columns.records
    pieces: list[bytes] = []
    end = 0
    for row, line in zip(rows.tolist(), exact_lines(columns, rows), strict=True):
        pieces += lines[end : row * width], line
        end = (row + 1) * width
    return b"".join([*pieces, lines[end:]])
