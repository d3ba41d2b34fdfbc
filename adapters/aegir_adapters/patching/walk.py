"""The rows of patches on their way up the layers."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from aegir_adapters.patching.packed import Place
from aegir_adapters.patching.patches import Patch

__all__ = ["Group", "Walk", "indices", "packed", "parted"]


class Group(NamedTuple):
    """All patches of one place that are on their way.

    Attributes:
        place: where they lie.
        each: how many rows each of them has.
        members: which patches.
        parts: their rows, one patch after the other, in one tensor or several. Shape (n, d_model).
    """

    place: Place
    each: int
    members: list[int]
    parts: list[Tensor]

    @property
    def size(self) -> int:
        """How many rows all of them have."""
        return self.each * len(self.members)


class Walk:
    """Where a walk stands.

    Attributes:
        patches: all patches.
        entering: indices of those that are still to come, by the layer that they enter.
        live: the others, in the order of their places.
    """

    def __init__(self, patches: Sequence[Patch]) -> None:
        self.patches = patches
        self.entering: dict[int, list[int]] = defaultdict(list)
        for index, patch in enumerate(patches):
            self.entering[patch.boundary].append(index)
        self.live: list[Group] = []

    def join(self, entering: Sequence[int], rows: Tensor, sizes: Sequence[int]) -> None:
        """Add patches that enter; those of one place come to lie together.

        Args:
            entering: which.
            rows: of all of them. Shape (n, d_model).
            sizes: how many rows each has.
        """
        groups = {group.place: group for group in self.live}
        parts = torch.split(rows, list(sizes))
        for index, size, part in zip(entering, sizes, parts, strict=True):
            patch = self.patches[index]
            place = Place(patch.lane, patch.start)
            group = groups.setdefault(place, Group(place, size, [], []))
            group.members.append(index)
            group.parts.append(part)
        self.live = [groups[place] for place in sorted(groups)]

    def blocks(self, rows: int) -> Iterator[list[Group]]:
        """Yield all groups, in lists of at most so many rows, or of one group."""
        block: list[Group] = []
        filled = 0
        for group in self.live:
            if block and filled + group.size > rows:
                yield block
                block, filled = [], 0
            block.append(group)
            filled += group.size
        if block:
            yield block

    def collected(self) -> Tensor:
        """Return the rows of all patches in their order. Shape (patches, rows, d_model)."""
        order = list(chain.from_iterable(group.members for group in self.live))
        rows = packed(self.live)
        by_patch = rows.reshape(len(order), -1, rows.shape[-1])
        return by_patch[torch.tensor(order, device=rows.device).argsort()]


def indices(ranges: Iterable[range], device: torch.device) -> Tensor:
    """Return some ranges, one after the other. Shape (n,), int64."""
    # A tensor of a list of a thousand numbers takes as long as a layer's norm of as many rows.
    numbers = array("q", chain.from_iterable(ranges))
    return torch.frombuffer(numbers, dtype=torch.int64).to(device)


def packed(groups: Sequence[Group]) -> Tensor:
    """Return the rows of some groups in one tensor. Shape (n, d_model)."""
    return torch.cat([part for group in groups for part in group.parts])


def parted(rows: Tensor, groups: Sequence[Group], *, last: int | None = None) -> list[Group]:
    """Return the same groups with other rows.

    Args:
        rows: shape (n, d_model).
        groups: the groups.
        last: of how many rows of each patch these are to be left; `None` for all.
    """
    parts = torch.split(rows, [group.size for group in groups])
    found = []
    for group, part in zip(groups, parts, strict=True):
        if last is None:
            found.append(group._replace(parts=[part]))
        else:
            left = part.reshape(len(group.members), group.each, -1)[:, -last:].flatten(0, 1)
            found.append(group._replace(each=last, parts=[left]))
    return found
