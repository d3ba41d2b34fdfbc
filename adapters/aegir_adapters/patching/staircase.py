"""All cells in one walk up the layers.

A patch that enters layer b at row p changes no row before p and no layer before b. So the walk
keeps, for each patch, only rows from p on, adds patches as it passes their layer, and runs the
model's own layer on all rows it has by then, as one long sequence. Attention gets each patch's rows
with the unpatched run's keys and values before them. For a grid of all layers and positions that is
a quarter of what whole forwards would take, in one pass over the weights for each chunk.

In the last layer only the rows that are read are of interest: there the others contribute keys and
values and nothing else.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import torch
from torch import Tensor, nn

from aegir_adapters.patching.decoder import Stop, first_tensor, with_first_tensor
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.packed import (
    Ending,
    Packed,
    Place,
    Switch,
    Whole,
    given,
    no_attention,
)
from aegir_adapters.patching.patches import Patch
from aegir_adapters.patching.trace import Trace
from aegir_adapters.patching.walk import Group, Walk, indices, packed, parted

__all__ = ["Staircase"]

CPU_BLOCK_ROWS: Final = 1024
"""Rows that a layer is run on at most at once on a CPU, so that what lies between its matrices
stays in the cache: an eighth less time than all at once at width 256. With fewer, reading the
weights and starting the operators costs more than that gains. Accelerators get all at once."""

FREED_BYTES: Final = 31 << 20
"""What is allocated and freed once, for glibc to keep memory that is freed afterwards. It gives
memory back once twice the largest block of up to 32 MiB that was ever freed lies idle; without this
each layer's intermediate results would be given back and faulted in again, for a twentieth of the
time."""


class Staircase:
    """Computes patches of one trace.

    Args:
        model: the model.
        trace: its unpatched run, attention tapped.

    Attributes:
        token_layers: rows that entered a layer so far.
    """

    def __init__(self, model: PatchableModel, trace: Trace) -> None:
        self._model = model
        self._trace = trace
        self._switch = Switch()
        self._masks = _added([attended.mask for attended in trace.attended], like=trace.final)
        self.token_layers = 0
        if model.device.type == "cpu":
            torch.empty(FREED_BYTES, dtype=torch.uint8)

    @staticmethod
    def cost(patch: Patch, *, num_layers: int, length: int) -> int:
        """Return how many rows will enter a layer for the sake of a patch.

        What lands inside a layer takes one row of it more for each overwritten row.
        """
        inside = len(patch.rows) if patch.landing in {"attn", "z"} else 0
        return inside + (num_layers - patch.boundary) * (length - patch.start)

    def run(self, patches: Sequence[Patch], *, reads: int) -> Tensor:
        """Return the residuals that leave the last layer.

        Args:
            patches: of any lanes.
            reads: how many of the last rows to return.

        Returns:
            Shape (patches, reads, d_model), in the order of the patches.
        """
        top = self._model.num_layers
        walk = Walk(patches)
        with self._model.computing(self._switch):
            for layer in range(top):
                self._enter(walk, layer, self._trace.length)
                if layer < top - 1:
                    self._advance(walk, layer)
                else:
                    self._finish(walk, layer, reads)
            self._enter(walk, top, reads)
        return walk.collected()

    def _enter(self, walk: Walk, boundary: int, keep: int) -> None:
        """Add the patches that are complete below a layer, with at most the last rows of each."""
        entering = walk.entering.pop(boundary, [])
        if not entering:
            return
        length = self._trace.length
        values = self._entry_values(walk, entering)
        unpatched: list[range] = []
        overwritten: list[int] = []
        overwriting: list[Tensor] = []
        sizes: list[int] = []
        filled = 0
        for index in entering:
            patch = walk.patches[index]
            first = max(patch.start, length - keep)
            kept = [row for row in patch.rows if row >= first]
            overwritten += [filled + row - first for row in kept]
            unpatched.append(range(patch.lane * length + first, (patch.lane + 1) * length))
            sizes.append(length - first)
            filled += length - first
            if kept:
                some = [patch.rows.index(row) for row in kept]
                whole = kept == list(patch.rows)
                overwriting.append(values[index] if whole else values[index][some])
        residual = self._residual(boundary).flatten(0, 1)
        rows = residual.index_select(0, indices(unpatched, residual.device))
        if overwriting:
            rows[overwritten] = torch.cat(overwriting).to(rows.dtype)
        walk.join(entering, rows, sizes)

    def _residual(self, boundary: int) -> Tensor:
        if boundary < self._model.num_layers:
            return self._trace.sites["resid_pre"][boundary]
        return self._trace.sites["resid_post"][-1]

    def _entry_values(self, walk: Walk, entering: list[int]) -> dict[int, Tensor]:
        """Return the overwritten rows as residuals below the layer that they enter."""
        values: dict[int, Tensor] = {}
        inside: dict[str, list[int]] = defaultdict(list)
        for index in entering:
            patch = walk.patches[index]
            if patch.landing in {"attn", "z"}:
                inside[patch.landing].append(index)
            elif patch.landing == "mlp" and patch.values is not None:
                at = (patch.layer, patch.lane, patch.rows)
                added = patch.values - self._trace.at("mlp_out", *at)
                values[index] = self._trace.at("resid_post", *at) + added
            elif patch.values is not None:
                values[index] = patch.values
        for members in inside.values():
            rows = self._through_layer([walk.patches[index] for index in members])
            values |= dict(zip(members, rows, strict=True))
        return values

    def _through_layer(self, patches: list[Patch]) -> tuple[Tensor, ...]:
        """Run overwritten rows alone through their layer; what attention does there is given."""
        layer, landing = patches[0].layer, patches[0].landing
        values = torch.cat([patch.values for patch in patches if patch.values is not None])
        lanes = [patch.lane for patch in patches for _ in patch.rows]
        rows = [row for patch in patches for row in patch.rows]
        before = self._trace.sites["resid_pre"][layer][lanes, rows]
        at = torch.tensor(rows, device=before.device)
        if landing == "z":
            self._switch.tap = given(values[None])
            after = self._layer(layer, before, at)
        else:
            self._switch.tap = no_attention
            branch = self._model.parts[layer].attn_branch
            assert branch is not None  # noqa: S101 - hooks of layers without one are refused
            with _replaced(branch, values):
                after = self._layer(layer, before, at)
        return torch.split(after, [len(patch.rows) for patch in patches])

    def _advance(self, walk: Walk, layer: int) -> None:
        """Run a layer on all rows."""
        left: list[Group] = []
        whole = self._whole(walk, layer)
        for block in walk.blocks(self._block_rows):
            self._switch.tap = Packed(whole, _places(block), mask=self._masks[layer])
            left += parted(self._layer(layer, packed(block), self._positions(block)), block)
        walk.live = left

    def _finish(self, walk: Walk, layer: int, reads: int) -> None:
        """Run the last layer: all rows up to its attention, the last ones through the rest."""
        left: list[Group] = []
        attended: list[Tensor] = []
        whole, mask = self._whole(walk, layer), self._masks[layer]
        for block in walk.blocks(self._block_rows):
            rows = packed(block)
            tap = Ending(Packed(whole, _places(block), mask=mask, last=reads))
            self._switch.tap = tap
            with suppress(Stop):
                self._layer(layer, rows, self._positions(block))
            attended.append(tap.output)
            left += parted(rows, block, last=reads)
        walk.live = left
        if left:
            self._leave(walk, layer, torch.cat(attended, 1))

    def _leave(self, walk: Walk, layer: int, attended: Tensor) -> None:
        """Run the last rows, of which attention is known, through the last layer once more.

        They are few, so those of several blocks go together. Counted they are already.
        """
        left: list[Group] = []
        entered = self.token_layers
        for block in walk.blocks(self._block_rows):
            size = sum(group.size for group in block)
            here, attended = attended[:, :size], attended[:, size:]
            self._switch.tap = given(here)
            left += parted(self._layer(layer, packed(block), self._positions(block)), block)
        walk.live, self.token_layers = left, entered

    def _whole(self, walk: Walk, layer: int) -> Whole:
        """Return what makes the keys and values of a layer whole."""
        most = max((len(group.members) for group in walk.live), default=0)
        return Whole(self._trace.attended[layer], most)

    def _positions(self, block: list[Group]) -> Tensor:
        """Return the position of each row of a block. Shape (n,), int64."""
        length = self._trace.length
        rows = [
            one
            for group in block
            for one in [range(length - group.each, length)] * len(group.members)
        ]
        return indices(rows, self._model.device)

    @property
    def _block_rows(self) -> int:
        """Return how many rows to run at once."""
        return CPU_BLOCK_ROWS if self._model.device.type == "cpu" else sys.maxsize

    def _layer(self, layer: int, rows: Tensor, positions: Tensor) -> Tensor:
        """Run the model's own layer on rows in one sequence. Shape (n, d_model) to the same."""
        self.token_layers += len(rows)
        call, length = self._trace.calls[layer], self._trace.length
        args = [_at(arg, positions, length) for arg in call.args]
        kwargs = {name: _at(value, positions, length) for name, value in call.kwargs.items()}
        output = self._model.parts[layer].layer(rows[None], *args, **kwargs)
        return first_tensor(output)[0]


def _places(block: list[Group]) -> list[tuple[Place, int]]:
    """Return the places of a block, each with its number of patches."""
    return [(group.place, len(group.members)) for group in block]


def _added(masks: Sequence[Tensor | None], *, like: Tensor) -> list[Tensor]:
    """Return masks that are added to attention weights, plain causal ones where there is none.

    Kernels take such masks as they are, and make one of every boolean mask at every call.
    """
    length = like.shape[1]
    hidden = like.new_full((1, 1, length, length), -torch.inf).triu(1)
    made: dict[int, Tensor] = {}
    for mask in masks:
        if mask is not None and mask.dtype == torch.bool and id(mask) not in made:
            made[id(mask)] = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)
    return [hidden if mask is None else made.get(id(mask), mask) for mask in masks]


@contextmanager
def _replaced(branch: nn.Module, rows: Tensor) -> Iterator[None]:
    """Have a branch return given rows, of shape (n, d_model)."""

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        return with_first_tensor(output, rows.reshape(first_tensor(output).shape))

    handle = branch.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _at(value: Any, index: Tensor, length: int) -> Any:
    """Return what a layer is told about some rows, from what it was told about all rows in order.

    Tables by position, such as those of rotary embeddings, are looked up; masks and caches, which
    the tap before attention takes care of, are left out.
    """
    if isinstance(value, tuple):
        return tuple(_at(one, index, length) for one in value)
    if not isinstance(value, Tensor):
        return None if hasattr(value, "get_seq_length") else value
    by_position = value.ndim in {2, 3} and value.shape[1] == length
    if by_position:
        return value[:1].index_select(1, index)
    return None if value.ndim > 3 else value  # noqa: PLR2004 - a mask over (batch, heads, rows, keys)
