"""Which cells there are, which cost nothing, and which are the same.

Three identities are exact:

- Nothing changes where the source's row is the patched prompt's own: all tokens up to there are
  shared, or alpha is 0, or the values are equal.
- A patch that is complete after the last layer, at a row that is not read, is read by nobody.
- `resid_post` of a layer and `resid_pre` of the next are one place.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import msgspec

from aegir_adapters.patching.hooks import Hook
from aegir_adapters.patching.lanes import Lane
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.patches import Patch, Values, patched_values
from aegir_adapters.patching.results import Position
from aegir_adapters.patching.setting import Setting
from aegir_adapters.patching.sources import Source

__all__ = ["Cell", "Cells", "Grid", "Job", "lay_out"]


class Cell(NamedTuple):
    """One place to patch.

    Attributes:
        pair: index of the prompt pair.
        hook: the hook.
        layer: the layer.
        position: as the caller named it.
    """

    pair: int
    hook: Hook
    layer: int
    position: Position

    @property
    def rows(self) -> tuple[int, ...]:
        """The overwritten rows."""
        return (self.position,) if isinstance(self.position, int) else self.position


class Job(msgspec.Struct, kw_only=True):
    """One patch to compute, for all cells that it is.

    Attributes:
        pair: index of the prompt pair.
        patches: one for each lane of the pair.
        values: what the hook puts at all positions, for each lane; the patch is some rows of it.
        columns: which rows.
        cells: the cells whose value it gives.
        promise: how important the preview holds it for; 0 without a preview.
    """

    pair: int
    patches: tuple[Patch, ...]
    values: tuple[Values, ...]
    columns: list[int]
    cells: list[Cell]
    promise: float = 0.0

    @property
    def start(self) -> int:
        """The first overwritten row."""
        return self.patches[0].start


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """What is swept of one prompt pair.

    Attributes:
        pair: its index.
        lanes: its lanes.
        source: what replaces activations.
        hooks: the hooks.
        layers: the layers.
        positions: the positions.
        alpha: see `SweepSpec`.
    """

    pair: int
    lanes: tuple[Lane, ...]
    source: Source
    hooks: tuple[Hook, ...]
    layers: tuple[int, ...]
    positions: tuple[Position, ...]
    alpha: float

    def cells(self) -> list[Cell]:
        """Return every cell once."""
        return [
            Cell(self.pair, hook, layer, position)
            for hook in self.hooks
            for layer in self.layers
            for position in self.positions
        ]


class Cells(NamedTuple):
    """All cells of a sweep.

    Attributes:
        free: those whose value is that of the unpatched run.
        jobs: what is to be computed for the others.
    """

    free: list[Cell]
    jobs: list[Job]


def lay_out(model: PatchableModel, setting: Setting, grids: Sequence[Grid]) -> Cells:
    """Return which cells are free, and the patches that the others need.

    Raises:
        OptionError: a source lacks something.
    """
    free: list[Cell] = []
    jobs: dict[Hashable, Job] = {}
    for grid in grids:
        unchanged = _unchanged(grid)
        values = _Lookup(setting, grid)
        for cell in grid.cells():
            if unchanged.issuperset(cell.rows) or _unread(model, grid, cell):
                free.append(cell)
                continue
            key = _key(grid, cell)
            if key not in jobs:
                job = _job(cell, values)
                if not any(job.values[0].changed[column] for column in job.columns):
                    free.append(cell)
                    continue
                jobs[key] = job
            jobs[key].cells.append(cell)
    return Cells(free, list(jobs.values()))


class _Lookup:
    """Values of a grid's hooks, made once for each layer."""

    def __init__(self, setting: Setting, grid: Grid) -> None:
        self._grid = grid
        self._lanes = [setting.stage(lane) for lane in grid.lanes]
        rows = {
            row
            for position in grid.positions
            for row in ((position,) if isinstance(position, int) else position)
        }
        self._rows = sorted(rows)
        self._column = {row: column for column, row in enumerate(self._rows)}
        self._made: dict[tuple[str, int], tuple[Values, ...]] = {}

    @property
    def lanes(self) -> list[int]:
        """Index of each lane in its trace."""
        return [index for _, index in self._lanes]

    def columns(self, cell: Cell) -> list[int]:
        """Return where the cell's rows are among the values."""
        return [self._column[row] for row in cell.rows]

    def of(self, cell: Cell) -> tuple[Values, ...]:
        """Return the values of the cell's hook in its layer, for each lane, at all positions."""
        key = (cell.hook.name, cell.layer)
        if key not in self._made:
            self._made[key] = tuple(
                patched_values(
                    stage.trace,
                    self._grid.source,
                    cell.hook,
                    layer=cell.layer,
                    lane=index,
                    positions=self._rows,
                    alpha=self._grid.alpha,
                )
                for stage, index in self._lanes
            )
        return self._made[key]


def _unchanged(grid: Grid) -> frozenset[int]:
    prompt = grid.lanes[0].token_ids[: grid.lanes[0].first_read + 1]
    return frozenset(range(len(prompt))) if grid.alpha == 0 else grid.source.unchanged(prompt)


def _unread(model: PatchableModel, grid: Grid, cell: Cell) -> bool:
    """Return whether the patch is complete after the last layer, where its rows are not read."""
    complete = cell.layer == model.num_layers - 1 and cell.hook.landing != "pre"
    return complete and max(cell.rows) < grid.lanes[0].first_read


def _key(grid: Grid, cell: Cell) -> Hashable:
    """Return what is the same for cells that are one patch."""
    _, hook, layer, _ = cell
    if hook.landing in {"pre", "post"} and hook.site != "resid_mid":
        boundary = layer + (hook.landing == "post")
        rows = tuple(grid.source.identity(hook, layer, row) for row in cell.rows)
        return grid.pair, boundary, cell.rows, rows
    return grid.pair, hook.name, layer, cell.rows


def _job(cell: Cell, lookup: _Lookup) -> Job:
    values, columns = lookup.of(cell), lookup.columns(cell)
    first = columns[0]
    # A slice costs a fifth of what a list of rows does, and nearly all patches have one row.
    rows = slice(first, first + 1) if len(columns) == 1 else columns
    patches = [
        Patch.of(cell.hook, cell.layer, lane=lane, rows=cell.rows, values=own.landing[rows])
        for lane, own in zip(lookup.lanes, values, strict=True)
    ]
    return Job(pair=cell.pair, patches=tuple(patches), values=values, columns=columns, cells=[])
