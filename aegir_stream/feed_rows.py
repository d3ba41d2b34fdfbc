"""The rows of a progress feed: lines that any program may have written. Pure.

A row is a JSON object with an integer `iter`. All else is optional, and what cannot be used is
passed over: scores that are no numbers, the bare `NaN` that Python's json writes, damaged bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from aegir_stream import codec

__all__ = ["Row", "decode_rows", "fields_of_row", "finite"]

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_NON_FINITE = {"NaN", "Infinity", "-Infinity"}
_COLUMNS = ("score", "ts", "cost", "calls")


class Row(msgspec.Struct, frozen=True, rename={"iteration": "iter"}, gc=False):
    """What is shown of a row."""

    iteration: Annotated[int, msgspec.Meta(ge=_LOWEST, le=_HIGHEST)]
    score: float | None = None
    ts: float | None = None
    cost: float | None = None
    calls: float | None = None


_row = msgspec.json.Decoder(Row)


def decode_rows(lines: Sequence[bytes]) -> tuple[list[Row], int]:
    """Return the rows on lines, in their order, and how many lines are none.

    Blank lines and control lines are neither.
    """
    rows = _decode_at_once(lines)
    if rows is not None:
        return rows, 0
    lines = [line for line in lines if line.strip() and not codec.is_control(line)]
    rows = [row for row in map(_decode, lines) if row]
    return rows, len(lines) - len(rows)


def fields_of_row(line: bytes) -> dict[str, Any] | None:
    """Return everything that stands in a row, `None` if the line is none.

    `iter` is an integer.
    """
    row = None if codec.is_control(line) else _decode(line)
    fields = _fields(line) if row else None
    return {**fields, "iter": row.iteration} if row and fields else None


def finite(value: float | None) -> float | None:
    """Return a number if it is one."""
    return value if value is not None and math.isfinite(value) else None


def _decode_at_once(lines: Sequence[bytes]) -> list[Row] | None:
    """Return the rows if every line is one that needs no second look."""
    joined = b"\n".join(lines)
    # Lines that begin and end like objects cannot be parts of one object that spans them.
    whole = joined[:1] == b"{" and joined[-1:] == b"}"
    if not whole or joined.count(b"}\n{") != len(lines) - 1 or codec.CONTROL_PREFIX in joined:
        return None
    try:
        joined.decode()  # msgspec does not look into strings that it skips
        rows = _row.decode_lines(joined)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return rows if len(rows) == len(lines) else None


def _decode(line: bytes) -> Row | None:
    """Return the row on a line; `None` if it is none, `None` for columns that are no numbers."""
    try:
        line.decode()
        return _row.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _convert(_fields(line))


def _convert(fields: dict[str, Any] | None) -> Row | None:
    iteration = fields.get("iter") if fields else None
    if isinstance(iteration, float) and iteration.is_integer():
        iteration = int(iteration)
    if not fields or not isinstance(iteration, int) or isinstance(iteration, bool):
        return None
    if not _LOWEST <= iteration <= _HIGHEST:
        return None
    return Row(iteration, *(_number(fields.get(name)) for name in _COLUMNS))


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        # Reads the bare NaN and Infinity that Python's json writes, and msgspec refuses.
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _number(value: Any) -> float | None:
    if isinstance(value, str) and value in _NON_FINITE:
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _as_float(value)
    return None


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
