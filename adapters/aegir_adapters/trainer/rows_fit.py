"""What of the columns fits into cells, and which records do not."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from aegir_adapters.trainer.cells import FloatCells, IntegerCells, with_stand_ins
from aegir_adapters.trainer.columns import Float32, Int32, SAEColumns, fired
from aegir_stream.errors import MalformedEventError

__all__ = ["FittedColumns", "fit"]

# The patterns of +0, and of positive finite numbers behind it, are the smallest.
_INFINITY_BITS: Final = np.uint32(0x7F80_0000)


Kept: TypeAlias = NDArray[np.bool_]


class FittedColumns(NamedTuple):
    """Columns all of whose numbers have a cell, in place of those that have none.

    Attributes:
        token_index: (n,) int32.
        layer_index: (n,) int32.
        indices: (n, k) int32, blank where no latent fired.
        activations: (n, k) float32, positive or a stand-in, blank where no latent fired.
        reconstruction_loss: (n,) float32, zero, positive or a stand-in.
        completion: (n,) int32, if there are completions.
        kept: (n, k) bool, the latents that fired; `None` where all did.
        odd: (n,) bool, the records in which a number was replaced by another.
    """

    token_index: Int32
    layer_index: Int32
    indices: Int32
    activations: Float32
    reconstruction_loss: Float32
    completion: Int32 | None
    kept: Kept | None
    odd: NDArray[np.bool_]


def fit(columns: SAEColumns) -> FittedColumns:
    """Return `columns` with everything that has no cell replaced, and where that was.

    Raises:
        MalformedEventError: an id is negative.
    """
    odd = np.zeros(columns.records, np.bool_)
    kept = None if _all_fired(columns.activations) else fired(columns.activations)
    return FittedColumns(
        token_index=_fit_ids("token_index", columns.token_index, odd),
        layer_index=_fit_ids("layer_index", columns.layer_index, odd),
        indices=_fit_indices(columns.indices, kept, odd),
        activations=_fit_activations(columns.activations, kept),
        reconstruction_loss=_fit_losses(columns.reconstruction_loss, odd),
        completion=_fit_ids("completion", columns.completion, odd),
        kept=kept,
        odd=odd,
    )


def _all_fired(activations: Float32) -> bool:
    """Return whether all are positive and finite: most steps, told apart by two fast passes."""
    bits = activations.view(np.uint32)
    return bool(bits.min(initial=1) > 0 and bits.max(initial=0) < _INFINITY_BITS)


def _fit_indices(indices: Int32, kept: Kept | None, odd: NDArray[np.bool_]) -> Int32:
    if kept is None:
        return _fit_ids("indices", indices, odd)
    valid = _fit_ids("indices", indices * kept, odd)
    return np.where(kept, valid, IntegerCells.BLANK)


def _fit_activations(activations: Float32, kept: Kept | None) -> Float32:
    if kept is None:
        return activations
    return np.where(kept, with_stand_ins(activations), FloatCells.BLANK)


def _fit_losses(losses: Float32, odd: NDArray[np.bool_]) -> Float32:
    if losses.view(np.uint32).max(initial=0) < _INFINITY_BITS:
        return losses
    negative = np.signbit(losses) & np.isfinite(losses)
    odd |= negative
    return np.where(negative, np.float32(0), with_stand_ins(losses))


@overload
def _fit_ids(name: str, ids: Int32, odd: NDArray[np.bool_]) -> Int32: ...
@overload
def _fit_ids(name: str, ids: None, odd: NDArray[np.bool_]) -> None: ...
def _fit_ids(name: str, ids: Int32 | None, odd: NDArray[np.bool_]) -> Int32 | None:
    if ids is None or not ids.size:
        return ids
    if (least := ids.min()) < 0:
        raise MalformedEventError(
            f"Expected `{name}` >= 0, got {least}",
            hint="Leave out what is padding, or give it the activation 0",
        )
    if ids.max() < IntegerCells.LIMIT:
        return ids
    odd |= (ids >= IntegerCells.LIMIT).reshape(len(odd), -1).any(axis=1)
    return np.minimum(ids, np.int32(IntegerCells.LIMIT - 1))
