"""What a sweep answers: its start, its cells, its summary."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.response_parts import (
    AlignmentReport,
    Extreme,
    Grid,
    HookGrid,
    MetricGrid,
    PairGrid,
    Skipped,
    SweptPair,
)
from aegir_adapters.patching.results import Engine, Method, NoiseFloor

__all__ = [
    "AlignmentReport",
    "CellEvent",
    "ErrorEvent",
    "Extreme",
    "Grid",
    "HookGrid",
    "MetricGrid",
    "PairGrid",
    "PatchSweepResponse",
    "Skipped",
    "StartEvent",
    "SummaryEvent",
    "SweptPair",
]


class PatchSweepResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A finished sweep.

    Of several prompt pairs, a grid holds the mean over them, and `None` where one of them has none;
    `clean` and `corrupt` are means likewise. `alignment` and `tokens` are the first pair's.

    Attributes:
        layers: rows of the grid.
        positions: columns of the grid: positions of the (first) patched prompt, or with `groups`
            the indices of `columns`. What is not aligned, in one of the pairs, is left out.
        hook: the first hook.
        metric: the (first) metric, which the grid holds.
        grid: of the first hook.
        clean: of the clean prompt, what the metric is made of; `None` without one.
        corrupt: of the patched prompt, unpatched.
        argmax: of the first hook.
        skipped: unaligned positions and failed cells.
        alignment: how the prompts were aligned; `None` for a source without a prompt.
        noise_floor: how far unpatched rows strayed at most, in the metric's unit.
        noise_floors: likewise by pair, chunk and position group.
        auto_captured: whether a source run was captured for this sweep.
        captured_source_run: its name, if one was; of several pairs the first that was.
        hook_grids: one for each hook if `hooks` was given.
        below_noise: of the first hook.
        warnings: what the caller should know.
        cells_total: cells of all grids, of all pairs.
        cells_free: cells that took no computing.
        cells_deduplicated: cells that equal another.
        cells_computed: the others.
        token_layers: rows that entered a decoder layer for the computed cells.
        token_layers_naive: what a forward for each cell would have taken.
        token_layers_riders: for the noise floor.
        token_layers_baselines: for the baselines and the preview.
        rank_correlation: of the preview's estimates with the exact effects.
        elapsed_s: seconds.
        engine: which engine computed.
        engine_reason: why.
        method: `attribution` if the values are estimates to first order.
        cells_estimated: cells that were estimated in the place of being computed.
        columns: names of the columns if `groups` was given.
        column_positions: for each column, the positions of the (first) patched prompt that are
            patched together.
        tokens: what each token of the patched prompt spells; `None` without a tokenizer.
        metric_grids: one for each hook and metric if `metrics` was given, the first hook first.
        pair_grids: one for each prompt pair if `pairs` was given.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    hook: str
    metric: MetricName
    grid: Grid
    clean: float | None
    corrupt: float | None
    argmax: Extreme | None
    skipped: tuple[Skipped, ...]
    alignment: AlignmentReport | None
    noise_floor: float | None
    noise_floors: tuple[NoiseFloor, ...]
    auto_captured: bool
    captured_source_run: str | None
    hook_grids: tuple[HookGrid, ...] | None
    below_noise: tuple[tuple[bool, ...], ...]
    warnings: tuple[str, ...]
    cells_total: int
    cells_free: int
    cells_deduplicated: int
    cells_computed: int
    token_layers: int
    token_layers_naive: int
    token_layers_riders: int
    token_layers_baselines: int
    rank_correlation: float | None
    elapsed_s: float
    engine: Engine
    engine_reason: str
    method: Method = "exact"
    cells_estimated: int = 0
    columns: tuple[str, ...] | None = None
    column_positions: tuple[tuple[int, ...], ...] = ()
    tokens: tuple[str, ...] | None = None
    metric_grids: tuple[MetricGrid, ...] | None = None
    pair_grids: tuple[PairGrid, ...] | None = None


class StartEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="start"):
    """A sweep begins; other fields as in `PatchSweepResponse`, the counts predicted.

    Attributes:
        hooks: all hooks.
        metrics: all metrics if `metrics` was given.
        pairs: one for each prompt pair if `pairs` was given.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    hook: str
    hooks: tuple[str, ...]
    metric: MetricName
    clean: float | None
    corrupt: float | None
    alignment: AlignmentReport | None
    skipped: tuple[Skipped, ...]
    auto_captured: bool
    captured_source_run: str | None
    warnings: tuple[str, ...]
    cells_total: int
    cells_free: int
    cells_deduplicated: int
    cells_computed: int
    token_layers: int
    token_layers_naive: int
    token_layers_riders: int
    token_layers_baselines: int
    engine: Engine
    engine_reason: str
    method: Method = "exact"
    cells_estimated: int = 0
    columns: tuple[str, ...] | None = None
    column_positions: tuple[tuple[int, ...], ...] = ()
    tokens: tuple[str, ...] | None = None
    metrics: tuple[MetricName, ...] | None = None
    pairs: tuple[SweptPair, ...] | None = None


class CellEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="cell"):
    """One cell of one prompt pair, final.

    Attributes:
        hook: name of the hook.
        layer: patched layer.
        position: its column, as the answer's `positions` call it: the patched position, of several
            pairs the first one's, or with `groups` the index of the column.
        value: of the (first) metric; `None` where it is undefined or the cell failed.
        below_noise: see `HookGrid`.
        free: whether it took no computing.
        error: why it failed.
        estimated: whether its values are estimates to first order.
        pair: index of its prompt pair; only if `pairs` was given.
        values: of all metrics; only if `metrics` was given.
    """

    hook: str
    layer: int
    position: int
    value: float | None
    below_noise: bool = False
    free: bool = False
    error: str | None = None
    estimated: bool = False
    pair: int | UnsetType = UNSET
    values: dict[MetricName, float | None] | UnsetType = UNSET


class SummaryEvent(PatchSweepResponse, frozen=True, kw_only=True, tag_field="type", tag="summary"):
    """The whole response, as the last event."""


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """The sweep broke off; no summary follows."""

    error: str
