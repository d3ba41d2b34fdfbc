"""Attention for rows of many patches that lie in one long sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegir_adapters.patching.attention import AttentionCall, Tap
from aegir_adapters.patching.decoder import Stop
from aegir_adapters.patching.trace import Attended

__all__ = ["Ending", "Packed", "Place", "Switch", "Whole", "given", "no_attention"]


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


def given(output: Tensor) -> Tap:
    """Return a tap for attention whose output is known. Shape (1, rows, heads, d_head)."""
    return lambda _: output


def no_attention(call: AttentionCall) -> Tensor:
    """Return zeros, where something else replaces the branch; a tap."""
    _, heads, rows, _ = call.query.shape
    return call.query.new_zeros(1, rows, heads, call.value.shape[-1])


class Whole:
    """Keys and values of whole prompts: a patch's own rows, and before them the unpatched ones.

    One buffer serves all places of a layer. They come in order, so from one to the next only the
    rows between their starts have to be restored.

    Args:
        attended: what the layer's attention was called with in the unpatched run.
        most: how many patches a place has at most.
    """

    def __init__(self, attended: Attended, most: int) -> None:
        self._attended = attended
        self._buffers = [
            given.new_empty(most, given.shape[2], given.shape[1], given.shape[3]).transpose(1, 2)
            for given in (attended.key, attended.value)
        ]
        self._at = Place(0, 0)

    def of(self, place: Place, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of all rows, to be used before the next are asked for.

        Args:
            place: where the patches lie.
            key: their own rows. Shape (patches, key heads, rows, d_head).
            value: likewise.

        Returns:
            Shape (patches, key heads, length, d_head) each.
        """
        follows = place.lane == self._at.lane and place.start >= self._at.start
        restored = slice(self._at.start if follows else 0, place.start)
        given = (self._attended.key, self._attended.value)
        for buffer, unpatched, own in zip(self._buffers, given, (key, value), strict=True):
            buffer[:, :, restored] = unpatched[place.lane, :, restored]
            buffer[: len(own), :, place.start :] = own
        self._at = place
        whole_key, whole_value = (buffer[: len(key)] for buffer in self._buffers)
        return whole_key, whole_value


class Packed:
    """A tap that attends within each patch, and from there to the unpatched rows before it.

    Args:
        whole: makes keys and values of whole prompts.
        places: the groups that the rows belong to, in order, each with its number of patches.
        mask: what is added to attention weights. Shape (1 or lanes, 1 or heads, length, length).
        last: how many of the last rows of each patch attend; `None` for all.
    """

    def __init__(
        self,
        whole: Whole,
        places: Sequence[tuple[Place, int]],
        *,
        mask: Tensor,
        last: int | None = None,
    ) -> None:
        self._whole = whole
        self._places = places
        self._mask = mask
        self._last = last

    def __call__(self, call: AttentionCall) -> Tensor:
        """See `Tap`."""
        length = self._mask.shape[-1]
        outputs = []
        groups = [self._groups(packed) for packed in (call.query, call.key, call.value)]
        for (place, _), query, key, value in zip(self._places, *groups, strict=True):
            asking = query if self._last is None else query[:, :, -self._last :]
            whole_key, whole_value = self._whole.of(place, key, value)
            lane = place.lane if len(self._mask) > 1 else 0
            part = call._replace(
                query=asking,
                key=whole_key,
                value=whole_value,
                mask=self._mask[lane : lane + 1, :, length - asking.shape[2] :],
            )
            outputs.append(part.output().flatten(0, 1))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]

    def _groups(self, packed: Tensor) -> list[Tensor]:
        """Return the groups' parts of (1, heads, all rows, d). Shape (patches, heads, rows, d)."""
        length = self._mask.shape[-1]
        sizes = [count * (length - place.start) for place, count in self._places]
        # One split for all, and views only: with few rows, slicing would cost as much as attention.
        parts = torch.split(packed[0].transpose(0, 1), sizes)
        shape = (-1, packed.shape[1], packed.shape[3])
        return [
            part.view(count, *shape).transpose(1, 2)
            for part, (_, count) in zip(parts, self._places, strict=True)
        ]


class Ending:
    """A tap that keeps what another makes, and ends the layer's forward there.

    Args:
        tap: the other.

    Attributes:
        output: what it made. Shape (1, rows, heads, d_head).
    """

    output: Tensor

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def __call__(self, call: AttentionCall) -> Tensor:
        """See `Tap`."""
        self.output = self._tap(call)
        raise Stop
