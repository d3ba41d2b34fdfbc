"""The rows of patches on their way up the layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from aegir_adapters.patching.packed import Place
from aegir_adapters.patching.patches import Patch

__all__ = ["Piece", "Walk", "counted", "parted"]


class Piece(NamedTuple):
    """Rows of some patches of one place.

    Attributes:
        place: where the patches lie.
        members: which patches.
        rows: their rows, one patch after the other; of each the same number. Shape (n, d_model).
    """

    place: Place
    members: list[int]
    rows: Tensor

    @property
    def each(self) -> int:
        """How many rows each patch has."""
        return len(self.rows) // len(self.members)

    def last(self, rows: int) -> Piece:
        """Return the last rows of each patch."""
        by_patch = self.rows.reshape(len(self.members), self.each, -1)
        return self._replace(rows=by_patch[:, -rows:].flatten(0, 1))


class Walk:
    """Where a walk stands.

    Attributes:
        patches: all patches.
        entering: indices of those that are still to come, by the layer that they enter.
        live: rows of the others.
    """

    def __init__(self, patches: Sequence[Patch]) -> None:
        self.patches = patches
        self.entering: dict[int, list[int]] = defaultdict(list)
        for index, patch in enumerate(patches):
            self.entering[patch.boundary].append(index)
        self.live: list[Piece] = []

    def place(self, index: int) -> Place:
        """Return where a patch lies."""
        return Place(self.patches[index].lane, self.patches[index].start)

    def join(self, entering: Sequence[int], rows: Tensor, sizes: Sequence[int]) -> None:
        """Add patches that enter; those of one place come to lie together.

        Args:
            entering: which.
            rows: of all of them. Shape (n, d_model).
            sizes: how many rows each has.
        """
        parts = torch.split(rows, list(sizes))
        pieces = [
            Piece(self.place(index), [index], part)
            for index, part in zip(entering, parts, strict=True)
        ]
        self.live = sorted([*self.live, *pieces], key=lambda piece: piece.place)

    def blocks(self, rows: int) -> Iterator[list[Piece]]:
        """Yield all pieces, in lists of at most so many rows, or of one piece."""
        block: list[Piece] = []
        filled = 0
        for piece in self.live:
            if block and filled + len(piece.rows) > rows:
                yield block
                block, filled = [], 0
            block.append(piece)
            filled += len(piece.rows)
        if block:
            yield block

    def collected(self) -> Tensor:
        """Return the rows of all patches in their order. Shape (patches, rows, d_model)."""
        order = list(chain.from_iterable(piece.members for piece in self.live))
        rows = torch.cat([piece.rows for piece in self.live])
        by_patch = rows.reshape(len(order), -1, rows.shape[-1])
        return by_patch[torch.tensor(order, device=rows.device).argsort()]


def counted(block: Sequence[Piece]) -> list[tuple[Place, int]]:
    """Return the places of a block, in order, each with its number of patches."""
    return [
        (place, sum(len(piece.members) for piece in pieces))
        for place, pieces in groupby(block, key=lambda piece: piece.place)
    ]


def parted(packed: Tensor, block: Sequence[Piece]) -> list[Piece]:
    """Return rows that take the place of those of a block, in one piece for each place."""
    found = []
    for place, pieces in groupby(block, key=lambda piece: piece.place):
        own = list(pieces)
        members = [index for piece in own for index in piece.members]
        found.append((place, members, sum(len(piece.rows) for piece in own)))
    rows = torch.split(packed, [size for _, _, size in found])
    return [Piece(place, own, part) for (place, own, _), part in zip(found, rows, strict=True)]
