"""The token sequences that a sweep runs: each prompt, continued by what is measured."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

__all__ = ["Lane", "lanes_of", "stacked"]


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt and the tokens that are forced after it.

    The logits of the last `reads` rows say how probable the model finds the targets.

    Attributes:
        pair: index of the prompt pair.
        token_ids: the prompt, and all targets but the last.
        reads: how many rows are read: as many as there are targets.
    """

    pair: int
    token_ids: tuple[int, ...]
    reads: int

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.token_ids)

    @property
    def first_read(self) -> int:
        """The first row that is read: the prompt's last."""
        return self.length - self.reads


def lanes_of(
    pair: int, prompt_ids: Sequence[int], answer_ids: Sequence[int], foil_ids: Sequence[int] | None
) -> tuple[Lane, ...]:
    """Return one lane, which the answer and a foil of one token each share, or one for each."""
    targets = [tuple(answer_ids)]
    if foil_ids is not None and (len(answer_ids) > 1 or len(foil_ids) > 1):
        targets.append(tuple(foil_ids))
    return tuple(
        Lane(pair=pair, token_ids=(*prompt_ids, *forced[:-1]), reads=len(forced))
        for forced in targets
    )


def stacked(lanes: Sequence[Lane], device: torch.device) -> Tensor:
    """Return the token ids of lanes of one length. Shape (lanes, length), int64."""
    return torch.tensor([lane.token_ids for lane in lanes], dtype=torch.long, device=device)
