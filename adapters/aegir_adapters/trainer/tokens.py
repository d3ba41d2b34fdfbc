"""Which tokens of one forward pass are recorded, and what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct, field, structs
from torch import Tensor

from aegir_adapters.trainer.transfer import to_device
from aegir_stream.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["IGNORED_LABEL", "Tokens", "completion_tokens", "labelled_tokens"]

IGNORED_LABEL = -100
"""The label that transformers leaves out of the loss."""


class Tokens(Struct, frozen=True, kw_only=True, eq=False):
    """The recorded tokens of a batch of B sequences of length T.

    Its tensors lie on the CPU, so that choosing tokens waits for no device.

    Attributes:
        rows: int64 (n,), sequence of each token.
        columns: int64 (n,), its position in the sequence, padding included.
        token_index: int64 (n,), its position in its completion (without completions: among
            the tokens of its sequence that are recorded).
        completion: int64 (n,) completion ids, or `None` where there are no completions.
        shape: (B, T); a forward of another shape is not read.
        places: int64 (n,), index of each token in the flattened batch, by device; copied there
            once for all layers.
    """

    rows: Tensor
    columns: Tensor
    token_index: Tensor
    completion: Tensor | None
    shape: tuple[int, int]
    places: dict[torch.device, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of tokens."""
        return int(self.rows.shape[0])

    def keep(self, chosen: Tensor) -> Tokens:
        """Return the tokens at these indices, int64 (m,), in that order."""
        return Tokens(
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            token_index=self.token_index[chosen],
            completion=None if self.completion is None else self.completion[chosen],
            shape=self.shape,
        )

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
        return hidden.detach().flatten(0, 1).index_select(0, self._places_on(hidden.device)).float()

    def _places_on(self, device: torch.device) -> Tensor:
        if device not in self.places:
            self.places[device] = to_device(self.rows * self.shape[1] + self.columns, device)
        return self.places[device]


def completion_tokens(
    mask: Tensor, *, offset: int, completion: Tensor | None, recorded: Tensor | None = None
) -> Tokens:
    """Return the tokens that a completion mask (B, C) marks, C columns behind `offset` others.

    A mask on the CPU keeps the device out of it: nothing waits for a kernel. `recorded` (B, C)
    takes some of them only; they keep their positions among all.
    """
    mask = mask.bool().cpu()
    chosen = mask if recorded is None else mask & recorded.bool().cpu()
    rows, places = chosen.nonzero(as_tuple=True)
    index = (mask.cumsum(1) - 1)[rows, places]
    return Tokens(
        rows=rows,
        columns=places + offset,
        token_index=index,
        completion=None if completion is None else completion.cpu()[rows],
        shape=(mask.shape[0], offset + mask.shape[1]),
    )


def labelled_tokens(inputs: Mapping[str, Any]) -> Tokens | None:
    """Return the tokens that a model's arguments, by name, ask to be learnt.

    Those whose own label is not -100; without labels, those that the attention mask does not
    call padding; without a mask, all. `None` where the arguments hold no tokens.

    A row may hold several sequences, one behind the other (`position_ids` then begin again at 0):
    `token_index` begins again with each.
    """
    learnt = _learnt(inputs)
    if learnt is None:
        return None
    learnt = learnt.cpu()
    tokens = completion_tokens(learnt, offset=0, completion=None)
    positions = _batch(inputs.get("position_ids"))
    if positions is None or positions.shape[1] != learnt.shape[1]:
        return tokens
    earlier = _earlier(learnt, begins=positions.cpu() == 0)[tokens.rows, tokens.columns]
    return structs.replace(tokens, token_index=tokens.token_index - earlier)


def _learnt(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return bool (B, T)."""
    labels, mask = _batch(inputs.get("labels")), _batch(inputs.get("attention_mask"))
    # Labels of several classes at once are (B, classes) and floating point.
    if labels is not None and not labels.is_floating_point():
        return labels != IGNORED_LABEL
    given = inputs.get("input_ids")
    if given is None:
        given = inputs.get("inputs_embeds")
    if not isinstance(given, torch.Tensor) or given.ndim < 2:  # noqa: PLR2004
        return None
    if mask is not None and mask.shape == given.shape[:2]:
        return mask.bool()
    return torch.ones(given.shape[:2], dtype=torch.bool)


def _earlier(learnt: Tensor, *, begins: Tensor) -> Tensor:
    """Return int64 (B, T), how many tokens of a row are learnt before the sequence of a column."""
    before = learnt.cumsum(1) - learnt.long()
    return before.where(begins, 0).cummax(1).values


def _batch(value: Any) -> Tensor | None:
    return value if isinstance(value, torch.Tensor) and value.ndim == 2 else None  # noqa: PLR2004
