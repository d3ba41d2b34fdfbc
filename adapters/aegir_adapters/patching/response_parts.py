"""What the answer to a sweep is made of."""

from __future__ import annotations

import msgspec

from aegir_adapters.patching.metrics import MetricName

__all__ = [
    "AlignmentReport",
    "Extreme",
    "Grid",
    "HookGrid",
    "MetricGrid",
    "PairGrid",
    "Skipped",
    "SweptPair",
]

Grid = tuple[tuple[float | None, ...], ...]
"""Values by layer, then by column; `None` where a metric is undefined or a cell failed."""


class Extreme(msgspec.Struct, frozen=True, kw_only=True):
    """A grid's best cell: the first of the largest value, of `kl` and `rank` the smallest.

    Attributes:
        layer: its layer.
        position: its column, as the answer's `positions` call it.
        value: its value.
    """

    layer: int
    position: int
    value: float


class HookGrid(msgspec.Struct, frozen=True, kw_only=True):
    """The grid of one hook.

    Attributes:
        hook: its name.
        grid: values.
        argmax: the best cell; `None` if no cell has a value.
        below_noise: whether each cell differs from the unpatched value by no more than unpatched
            rows of its batch do. Of a mean over pairs, whether the cells of all pairs do.
    """

    hook: str
    grid: Grid
    argmax: Extreme | None
    below_noise: tuple[tuple[bool, ...], ...]


class MetricGrid(msgspec.Struct, frozen=True, kw_only=True):
    """The grid of one hook and one of several metrics.

    Attributes:
        hook: name of the hook.
        metric: what the grid holds.
        grid: values.
        argmax: the best cell; `None` if no cell has a value.
        clean: of the clean prompt, what the metric is made of; `None` without one.
        corrupt: of the patched prompt, unpatched.
        noise_floor: how far unpatched rows strayed at most, in the metric's unit.
        below_noise: see `HookGrid`.
    """

    hook: str
    metric: MetricName
    grid: Grid
    argmax: Extreme | None
    clean: float | None
    corrupt: float | None
    noise_floor: float | None
    below_noise: tuple[tuple[bool, ...], ...]


class Skipped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A position that was not swept, or a cell that failed.

    Attributes:
        position: position of the patched prompt that is not aligned; of a cell that failed its
            column, as the answer's `positions` call it.
        reason: why.
        hook: of a cell that failed.
        layer: likewise.
        pair: index of the prompt pair, of several.
        column: name of the group that it belongs to.
    """

    position: int
    reason: str
    hook: str | None = None
    layer: int | None = None
    pair: int | None = None
    column: str | None = None


class AlignmentReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the prompts were aligned.

    Attributes:
        n_clean: tokens of the source run's prompt.
        n_corrupt: tokens of the patched prompt.
        prefix_len: tokens that both begin with.
        suffix_len: tokens that both end with.
        unaligned_positions: positions of the patched prompt that have no counterpart.
        shifts: for each position that is patched, column by column, how far behind it its
            counterpart lies.
    """

    n_clean: int
    n_corrupt: int
    prefix_len: int
    suffix_len: int
    unaligned_positions: tuple[int, ...]
    shifts: tuple[int, ...]


class SweptPair(msgspec.Struct, frozen=True, kw_only=True):
    """One of several prompt pairs, as far as it is known at the start.

    Attributes:
        pair: its index.
        column_positions: for each column, the positions of its prompt that are patched together.
        tokens: what each token of its patched prompt spells; `None` without a tokenizer.
        clean: of its clean prompt, what the first metric is made of; `None` without one.
        corrupt: of its patched prompt, unpatched.
        alignment: how its prompts were aligned; `None` for a source without a prompt.
        auto_captured: whether its source run was captured for this sweep.
        captured_source_run: the run's name, if it was.
    """

    pair: int
    column_positions: tuple[tuple[int, ...], ...]
    tokens: tuple[str, ...] | None
    clean: float | None
    corrupt: float | None
    alignment: AlignmentReport | None
    auto_captured: bool
    captured_source_run: str | None


class PairGrid(SweptPair, frozen=True, kw_only=True):
    """The grids of one of several prompt pairs.

    Attributes:
        noise_floor: how far unpatched rows strayed at most, in the first metric's unit.
        hook_grids: one for each hook, of the first metric.
        metric_grids: one for each hook and metric if `metrics` was given.
    """

    noise_floor: float | None
    hook_grids: tuple[HookGrid, ...]
    metric_grids: tuple[MetricGrid, ...] | None = None
