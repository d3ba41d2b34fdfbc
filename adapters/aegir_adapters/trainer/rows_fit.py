"""What of the columns fits into cells, and which records do not."""

from __future__ import annotations

from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from aegir_adapters.trainer.cells import IntegerCells, all_normal, is_normal
from aegir_adapters.trainer.columns import Float32, Int32, SAEColumns, fired
from aegir_stream.errors import MalformedEventError

__all__ = ["FittedColumns", "fit"]


class FittedColumns(NamedTuple):
    """Columns all of whose numbers have a cell, in place of those that have none.

    Attributes:
        token_index: (n,) int32.
        layer_index: (n,) int32.
        indices: (n, k) int32.
        activations: (n, k) float32, positive normal.
        reconstruction_loss: (n,) float32, zero or positive normal.
        completion: (n,) int32, if there are completions.
        kept: (n, k) bool, the latents that fired; `None` where all did.
        odd: (n,) bool, the records in which a number was replaced, or whose first latent did not
            fire although a later one did.
    """

    token_index: Int32
    layer_index: Int32
    indices: Int32
    activations: Float32
    reconstruction_loss: Float32
    completion: Int32 | None
    kept: NDArray[np.bool_] | None
    odd: NDArray[np.bool_]


def fit(columns: SAEColumns) -> FittedColumns:
    """Return `columns` with everything that has no cell replaced, and where that was.

    Raises:
        MalformedEventError: an id is negative.
    """
    if all_normal(columns.activations):
        kept, odd = None, np.zeros(columns.records, np.bool_)
        indices, activations = columns.indices, columns.activations
    else:
        normal = is_normal(columns.activations)
        kept = fired(columns.activations)
        odd = (kept & ~normal).any(axis=1) | (kept.any(axis=1) & ~kept[:, 0])
        indices = np.where(kept, columns.indices, np.int32(0))
        activations = np.where(normal, columns.activations, np.float32(1))
    return FittedColumns(
        token_index=_fit_ids("token_index", columns.token_index, odd),
        layer_index=_fit_ids("layer_index", columns.layer_index, odd),
        indices=_fit_ids("indices", indices, odd),
        activations=activations,
        reconstruction_loss=_fit_losses(columns.reconstruction_loss, odd),
        completion=_fit_ids("completion", columns.completion, odd),
        kept=kept,
        odd=odd,
    )


def _fit_losses(losses: Float32, odd: NDArray[np.bool_]) -> Float32:
    if all_normal(losses):
        return losses
    fits = is_normal(losses) | (losses.view(np.uint32) == 0)
    odd |= ~fits
    return np.where(fits, losses, np.float32(1))


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
