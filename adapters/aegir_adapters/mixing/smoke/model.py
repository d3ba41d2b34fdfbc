"""A recurrent language model that is small enough for a smoke run."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["STATE_SHAPE", "StreamModel"]

_WIDTH = 32

STATE_SHAPE = (1, _WIDTH)
"""Layers and width of a stream's state."""


class StreamModel(nn.Module):
    """Predicts the next token of each stream from its chunk and its state.

    Args:
        vocabulary: number of tokens.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, _WIDTH)
        self.recurrence = nn.GRU(_WIDTH, _WIDTH, num_layers=STATE_SHAPE[0], batch_first=True)
        self.head = nn.Linear(_WIDTH, vocabulary)

    def forward(
        self, tokens: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss over `tokens` `[n, length + 1]`, and the states behind them.

        States are `[n, *STATE_SHAPE]`; those handed in carry no gradient.
        """
        hidden = states.transpose(0, 1).contiguous()
        outputs, hidden = self.recurrence(self.embedding(tokens[:, :-1]), hidden)
        logits = self.head(outputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return loss, hidden.transpose(0, 1)
