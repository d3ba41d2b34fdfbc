"""Which tokens of one forward pass are recorded, and what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct
from torch import Tensor

from aegir_stream.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["IGNORED_LABEL", "Tokens", "completion_tokens", "labelled_tokens"]

IGNORED_LABEL = -100
"""The label that transformers leaves out of the loss."""


class Tokens(Struct, frozen=True, kw_only=True, eq=False):
    """The recorded tokens of a batch of B sequences of length T.

    Attributes:
        rows: int64 (n,), sequence of each token.
        columns: int64 (n,), its position in the sequence, padding included.
        token_index: int64 (n,), its position among the recorded tokens of its sequence.
        completion: int64 (n,) completion ids, or `None` where there are no completions.
        shape: (B, T); a forward of another shape is not read.
    """

    rows: Tensor
    columns: Tensor
    token_index: Tensor
    completion: Tensor | None
    shape: tuple[int, int]

    @property
    def count(self) -> int:
        """Number of tokens."""
        return int(self.rows.shape[0])

    def select(self, hidden: Tensor) -> Tensor:
        """Return float32 (n, d_model), the tokens' rows of a residual stream (B, T, d_model).

        Raises:
            ShapeError: the residual stream is not laid out as the batch was.
        """
        # Checked here since a device that is given an index out of range is lost to training too.
        if hidden.ndim != 3 or hidden.shape[:2] != self.shape:  # noqa: PLR2004
            raise ShapeError(
                f"Expected a residual stream of shape {(*self.shape, 'd_model')}, "
                f"got {tuple(hidden.shape)}",
                hint="Sequence-parallel and packed layouts cannot be captured",
            )
        rows, columns = self.rows.to(hidden.device), self.columns.to(hidden.device)
        return hidden.detach()[rows, columns].float()


def completion_tokens(mask: Tensor, *, offset: int, completion: Tensor | None) -> Tokens:
    """Return the tokens that a completion mask (B, C) marks, C columns behind `offset` others.

    A mask on the CPU keeps the device out of it: nothing waits for a kernel.
    """
    mask = mask.bool()
    rows, places = mask.nonzero(as_tuple=True)
    index = (mask.cumsum(1) - 1)[rows, places]
    return Tokens(
        rows=rows,
        columns=places + offset,
        token_index=index,
        completion=None if completion is None else completion.to(rows.device)[rows],
        shape=(mask.shape[0], offset + mask.shape[1]),
    )


def labelled_tokens(inputs: Mapping[str, Any]) -> Tokens | None:
    """Return the tokens that a model's keyword arguments ask to be learnt.

    Those whose own label is not -100; without labels, those that the attention mask does not
    call padding; without a mask, all. `None` where the arguments hold no token ids.
    """
    labels, mask, ids = (_batch(inputs.get(k)) for k in ("labels", "attention_mask", "input_ids"))
    if labels is not None:
        valid = labels != IGNORED_LABEL
    elif ids is None:
        return None
    elif mask is not None and mask.shape == ids.shape:
        valid = mask.bool()
    else:
        valid = torch.ones_like(ids, dtype=torch.bool)
    return completion_tokens(valid, offset=0, completion=None)


def _batch(value: Any) -> Tensor | None:
    return value if isinstance(value, torch.Tensor) and value.ndim == 2 else None  # noqa: PLR2004
