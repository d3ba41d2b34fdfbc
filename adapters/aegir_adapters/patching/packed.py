"""Attention for rows of many patches that lie in one long sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegir_adapters.patching.attention import AttentionCall, Tap
from aegir_adapters.patching.decoder import Stop
from aegir_adapters.patching.trace import Attended

__all__ = ["KeysOnly", "Packed", "Place", "Switch", "no_attention"]


class Place(NamedTuple):
    """Where a group of patches lies: they share all rows before the first.

    Attributes:
        lane: index among the lanes of the trace.
        start: the first row.
    """

    lane: int
    start: int


class Switch:
    """A tap whose work can be exchanged.

    Attributes:
        tap: what is to be done now; `None` for the model's own attention.
    """

    def __init__(self) -> None:
        self.tap: Tap | None = None

    def __call__(self, call: AttentionCall) -> Tensor:
        """See `Tap`."""
        return call.output() if self.tap is None else self.tap(call)


class KeysOnly:
    """A tap that keeps keys and values, and ends the layer's forward there.

    Attributes:
        key: shape (1, key heads, rows, d_head).
        value: likewise.
    """

    key: Tensor
    value: Tensor

    def __call__(self, call: AttentionCall) -> Tensor:
        """See `Tap`."""
        self.key, self.value = call.key, call.value
        raise Stop


def no_attention(call: AttentionCall) -> Tensor:
    """Return zeros, where something else replaces the branch; a tap."""
    _, heads, rows, _ = call.query.shape
    return call.query.new_zeros(1, rows, heads, call.value.shape[-1])


class Packed:
    """A tap that attends within each patch, and from there to the unpatched rows before it.

    Args:
        attended: what the layer's attention was called with in the unpatched run.
        places: the groups that the rows belong to, in order, each with its number of patches.
        causal: which rows see which, for models that make no mask. Shape (1, 1, length, length).
        keys: keys and values of all rows, where the queries are the last rows of each patch only;
            `None` where queries, keys and values have the same rows.
        reads: how many last rows these are.
    """

    def __init__(
        self,
        attended: Attended,
        places: Sequence[tuple[Place, int]],
        *,
        causal: Tensor,
        keys: KeysOnly | None = None,
        reads: int = 0,
    ) -> None:
        self._attended = attended
        self._places = places
        self._causal = causal
        self._keys = keys
        self._reads = reads

    def __call__(self, call: AttentionCall) -> Tensor:
        """See `Tap`."""
        source = self._keys or call
        length = self._attended.key.shape[2]
        below = [length - place.start for place, _ in self._places]
        asking = below if self._keys is None else [self._reads] * len(below)
        queries = self._groups(call.query, asking)
        keys, values = self._groups(source.key, below), self._groups(source.value, below)
        outputs = []
        groups = zip(self._places, asking, queries, keys, values, strict=True)
        for (place, _), rows, query, key, value in groups:
            part = call._replace(
                query=query,
                key=_whole(self._attended.key, key, place),
                value=_whole(self._attended.value, value, place),
                mask=self._mask(place, rows),
            )
            outputs.append(part.output().flatten(0, 1))
        return torch.cat(outputs)[None]

    def _groups(self, packed: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Return the groups' parts of (1, heads, all rows, d). Shape (patches, heads, rows, d)."""
        counts = [count for _, count in self._places]
        sizes = [count * each for count, each in zip(counts, rows, strict=True)]
        # One split for all, and views only: with few rows, slicing would cost as much as attention.
        parts = torch.split(packed[0].transpose(0, 1), sizes)
        shape = (-1, packed.shape[1], packed.shape[3])
        return [
            p.view(count, *shape).transpose(1, 2) for p, count in zip(parts, counts, strict=True)
        ]

    def _mask(self, place: Place, asking: int) -> Tensor | None:
        """Return what the last rows see. Shape (1, 1 or heads, rows, length)."""
        mask = self._attended.mask
        if mask is not None:
            lane = place.lane if len(mask) > 1 else 0
            return mask[lane : lane + 1, :, -asking:]
        return None if asking == 1 else self._causal[:, :, -asking:]


def _whole(unpatched: Tensor, own: Tensor, place: Place) -> Tensor:
    """Return keys or values of all rows. Shape (patches, key heads, length, d_head)."""
    if not place.start:
        return own
    before = unpatched[place.lane, :, : place.start].expand(len(own), -1, -1, -1)
    return torch.cat([before, own], 2)
