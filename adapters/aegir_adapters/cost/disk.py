"""How many bytes a recording writes.

Records have a fixed width in the log (`aegir_adapters.trainer.rows`), so their part is exact as
long as every number has a cell.
"""

from __future__ import annotations

from msgspec import Struct

from aegir_adapters.cost.load import CaptureLoad

__all__ = ["DiskCost", "disk_cost", "record_bytes"]

_RECORD_TEXT = 133
"""A record's names and single numbers, the step's digits aside."""

_COMPLETION_CELL = 18
_ACTIVATION_CELL = 10
_COMMA = 1
_STEP_TEXT = 700
_STEP_LAYER_TEXT = 110
"""The lines of metrics and progress, and what each layer's health adds to them."""

_COMPLETION_TEXT = 160
"""A completion with one reward, without its content."""

_TRAILER_TEXT = 105
"""The control line behind each append."""

_INDEX_CELLS = ((10_000, 4), (100_000, 5), (1_000_000, 6))
_WIDEST_INDEX_CELL = 8


class DiskCost(Struct, frozen=True, kw_only=True):
    """Bytes of log.

    Attributes:
        record: of one record.
        step: of one optimizer step, on average.
        run: of all steps.
    """

    record: int
    step: int
    run: int


def disk_cost(load: CaptureLoad) -> DiskCost:
    """Return what a recording writes with the default precision, and without texts."""
    record = record_bytes(load)
    appends = load.forwards * load.passes + 2
    step = (
        load.records * record
        + load.completions * _COMPLETION_TEXT
        + appends * _TRAILER_TEXT
        + _STEP_TEXT
        + _STEP_LAYER_TEXT * load.layers
    )
    return DiskCost(record=record, step=round(step), run=round(step * load.steps))


def record_bytes(load: CaptureLoad) -> int:
    """Return the length of one record's line."""
    latents = load.top_k * (_index_cell(load.n_latents) + _ACTIVATION_CELL + 2 * _COMMA) + 2
    return _RECORD_TEXT + len(str(load.steps)) + latents + _COMPLETION_CELL


def _index_cell(n_latents: int) -> int:
    return next((cell for end, cell in _INDEX_CELLS if n_latents <= end), _WIDEST_INDEX_CELL)
