"""What a token looks like to an SAE: its hardest latents and how well they explain it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
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


def join(chunks: Iterable[TopLatents], *, n: int) -> TopLatents:
    """Return the latents of consecutive chunks, one at least, of n tokens as those of one batch.

    Each chunk is put into its place before the next one is made. Small results that outlive a
    chunk would lie between the large blocks of memory that the chunks use, and keep those from
    being used again: 1.7 GiB for 8,192 tokens and 65,536 latents in chunks of 16 tokens.
    """
    remaining = iter(chunks)
    first = next(remaining)
    if len(first.indices) == n:
        return first
    whole, done = _empty_like(first, n), 0
    for chunk in chain([first], remaining):
        size = len(chunk.indices)
        for part, into in zip(chunk[:-1], whole[:-1], strict=True):
            into[done : done + size] = part
        whole.fired.logical_or_(chunk.fired)
        done += size
    return whole


def _empty_like(chunk: TopLatents, n: int) -> TopLatents:
    indices, activations, losses, l0 = (part.new_empty(n, *part.shape[1:]) for part in chunk[:-1])
    return TopLatents(indices, activations, losses, l0, torch.zeros_like(chunk.fired))
