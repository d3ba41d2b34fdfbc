"""What a token looks like to an SAE: its hardest latents and how well they explain it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class TopLatents(NamedTuple):
    """The k latents that fired hardest for each of n tokens, and the health of their code.

    All tensors lie on the device of the SAE.

    Attributes:
        indices: latents, hardest first. Shape (n, k), int32.
        activations: their activations in the SAE's own units, descending; zero is padding, its
            index means nothing. Shape (n, k), float32.
        reconstruction_loss: ``||x - SAE(x)||^2`` summed over d_model, in the units of x, with all
            active latents and not only the k recorded ones. Shape (n,), float32.
        l0: active latents of the full code. Shape (n,), int32.
        fired: whether a latent was active for any of the tokens. Shape (n_latents,), bool.
    """

    indices: Tensor
    activations: Tensor
    reconstruction_loss: Tensor
    l0: Tensor
    fired: Tensor


def join(chunks: Sequence[TopLatents]) -> TopLatents:
    """Return the latents of consecutive chunks of tokens as those of one batch."""
    if len(chunks) == 1:
        return chunks[0]
    indices, activations, losses, l0, fired = zip(*chunks, strict=True)
    return TopLatents(
        torch.cat(indices),
        torch.cat(activations),
        torch.cat(losses),
        torch.cat(l0),
        reduce(torch.logical_or, fired),
    )
