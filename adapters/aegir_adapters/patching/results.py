"""What a sweep tells: its beginning, cells as they become final, its end."""

from __future__ import annotations

from typing import Literal

import msgspec

from aegir_adapters.patching.metrics import MetricName

__all__ = [
    "Baselines",
    "CellBatch",
    "CellResult",
    "Engine",
    "Method",
    "NoiseFloor",
    "Position",
    "SweepBegin",
    "SweepCounts",
    "SweepEnd",
]

Engine = Literal["staircase", "forwards"]

Method = Literal["exact", "attribution"]
"""How cells get their values: each is computed with its patch in place, or all are estimated to
first order from one backward pass for each metric."""

Position = int | tuple[int, ...]
"""One position of the patched prompt, or several that are patched together."""


class SweepCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How much work a sweep is.

    A token-layer is one row that enters one decoder layer. A forward per cell would take
    ``total x num_layers x prompt length`` of them.

    Attributes:
        total: cells asked for.
        free: cells whose value follows without any computing.
        deduplicated: cells that equal another cell, which is computed.
        computed: cells that are computed: ``total - free - deduplicated - estimated``.
        token_layers: what the computed cells take.
        token_layers_naive: what one forward for each cell would take.
        token_layers_riders: what the unpatched rows that measure the noise take in addition.
        token_layers_baselines: what the unpatched forwards, and the preview that orders the cells,
            take; a backward counts as two forwards.
        estimated: cells that are estimated in place of being computed.
    """

    total: int
    free: int
    deduplicated: int
    computed: int
    token_layers: int
    token_layers_naive: int
    token_layers_riders: int = 0
    token_layers_baselines: int = 0
    estimated: int = 0


class Baselines(msgspec.Struct, frozen=True, kw_only=True):
    """What the metrics are without a patch.

    Attributes:
        pair: index of the prompt pair.
        corrupt: of the patched prompt, unpatched, by metric.
        clean: of the source run's prompt, by metric; `None` for a source that has no prompt.
    """

    pair: int
    corrupt: dict[MetricName, float | None]
    clean: dict[MetricName, float | None] | None = None


class SweepBegin(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep starts: everything is known but the cells.

    Attributes:
        hooks: names of the hooks, in the order asked for.
        layers: swept layers.
        positions: swept positions of each pair.
        metrics: in the order in which cells hold their values.
        baselines: one for each pair.
        counts: what is predicted.
        engine: which engine computes the cells.
        engine_reason: why.
        warnings: what the caller should know, such as a metric that is undefined.
        method: how cells get their values.
    """

    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[tuple[Position, ...], ...]
    metrics: tuple[MetricName, ...]
    baselines: tuple[Baselines, ...]
    counts: SweepCounts
    engine: Engine
    engine_reason: str
    warnings: tuple[str, ...] = ()
    method: Method = "exact"


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """One cell, final.

    Attributes:
        pair: index of the prompt pair.
        hook: name of the hook.
        layer: patched layer.
        position: patched position of the prompt.
        values: one for each metric; `None` where the metric is undefined or the cell failed.
        below_noise: whether the first metric differs from the unpatched value by no more than an
            unpatched row of the same batch does.
        free: whether it followed without computing.
        error: why it failed.
        estimated: whether the values are first-order estimates. Free cells are exact always.
        quiet: `below_noise` for each metric.
    """

    pair: int
    hook: str
    layer: int
    position: Position
    values: tuple[float | None, ...]
    below_noise: bool = False
    free: bool = False
    error: str | None = None
    estimated: bool = False
    quiet: tuple[bool, ...] = ()


class CellBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Cells that became final together, most promising first.

    Attributes:
        cells: the cells.
        noise_floor: of their chunk, the largest by metric; empty for free cells.
    """

    cells: tuple[CellResult, ...]
    noise_floor: dict[MetricName, float] = {}


class NoiseFloor(msgspec.Struct, frozen=True, kw_only=True):
    """How far unpatched rows strayed from the unpatched baseline.

    Attributes:
        pair: index of the prompt pair.
        chunk: which chunk.
        starts: the position group: first patched positions.
        values: absolute difference by metric.
    """

    pair: int
    chunk: int
    starts: tuple[int, ...]
    values: dict[MetricName, float]


class SweepEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep is over.

    Attributes:
        counts: what was done.
        noise_floor: the largest over all position groups, by metric.
        noise_floors: each of them.
        failed: cells that failed.
        rank_correlation: Spearman's, between the preview's estimates and the exact effects of the
            computed cells; `None` without a preview, with fewer than two cells, or where no cell
            was computed.
        elapsed_s: from the call to the end, waiting of the caller excluded.
    """

    counts: SweepCounts
    noise_floor: dict[MetricName, float]
    noise_floors: tuple[NoiseFloor, ...]
    failed: int
    rank_correlation: float | None
    elapsed_s: float
