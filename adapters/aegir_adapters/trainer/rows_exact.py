"""Records one by one, exactly."""

from __future__ import annotations

from itertools import compress
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from aegir_adapters.trainer.columns import SAEColumns, fired
from aegir_stream.events import SAELogRecord

__all__ = ["exact_lines"]

# The log's spelling, see `aegir_stream.codec`.
_NON_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def exact_lines(columns: SAEColumns, rows: NDArray[np.intp]) -> list[bytes]:
    """Return some of the records, with the shortest digits that identify each float32."""
    encoder = msgspec.json.Encoder()
    return [encoder.encode(_record(columns, row)) + b"\n" for row in rows]


def _record(columns: SAEColumns, row: np.intp) -> dict[str, object]:
    kept = fired(columns.activations[row]).tolist()
    values = (
        columns.step,
        int(columns.token_index[row]),
        int(columns.layer_index[row]),
        list(compress(columns.indices[row].tolist(), kept)),
        [_shortest(value) for value in compress(columns.activations[row], kept)],
        _shortest(columns.reconstruction_loss[row]),
    )
    record: dict[str, object] = dict(zip(SAELogRecord.__struct_fields__, values, strict=False))
    if columns.completion is not None:
        record["completion"] = int(columns.completion[row])
    if columns.pass_ != "loss":
        record["pass"] = columns.pass_
    return record


def _shortest(value: np.float32) -> float | str:
    """Return the float64 with the fewest digits that becomes `value` as a float32."""
    text = str(value)
    return _NON_FINITE.get(text) or float(text)
