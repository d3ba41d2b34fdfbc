"""What a sweep answers: its start, its cells, its summary."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aegir_adapters.patching.alignment import Alignment, Unaligned
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.results import Engine, NoiseFloor

__all__ = [
    "AlignmentReport",
    "CapturedRun",
    "CellEvent",
    "ErrorEvent",
    "Extreme",
    "Grid",
    "HookGrid",
    "ModelResponse",
    "PatchSweepResponse",
    "Skipped",
    "StartEvent",
    "SummaryEvent",
    "TokensResponse",
    "report_alignment",
    "report_unaligned",
]

Grid = tuple[tuple[float | None, ...], ...]
"""Values by layer, then by position; `None` where a metric is undefined or a cell failed."""


class Extreme(msgspec.Struct, frozen=True, kw_only=True):
    """A grid's best cell: the first of the largest value, of `kl` and `rank` the smallest."""

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
            rows of its batch do.
    """

    hook: str
    grid: Grid
    argmax: Extreme | None
    below_noise: tuple[tuple[bool, ...], ...]


class Skipped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A position that was not swept, or a cell that failed.

    Attributes:
        position: the position.
        reason: why.
        hook: of a cell that failed.
        layer: likewise.
    """

    position: int
    reason: str
    hook: str | None = None
    layer: int | None = None


class AlignmentReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the prompts were aligned.

    Attributes:
        n_clean: tokens of the source run's prompt.
        n_corrupt: tokens of the patched prompt.
        prefix_len: tokens that both begin with.
        suffix_len: tokens that both end with.
        unaligned_positions: positions of the patched prompt that have no counterpart.
        shifts: for each swept position, how far behind it its counterpart lies.
    """

    n_clean: int
    n_corrupt: int
    prefix_len: int
    suffix_len: int
    unaligned_positions: tuple[int, ...]
    shifts: tuple[int, ...]


class PatchSweepResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A finished sweep.

    Attributes:
        layers: rows of the grid.
        positions: columns of the grid; unaligned positions are left out.
        hook: the first hook.
        metric: what the grid holds.
        grid: of the first hook.
        clean: of the clean prompt, what the metric is made of; `None` without one.
        corrupt: of the patched prompt, unpatched.
        argmax: of the first hook.
        skipped: unaligned positions and failed cells.
        alignment: how the prompts were aligned; `None` for a source without a prompt.
        noise_floor: how far unpatched rows strayed at most, in the metric's unit.
        noise_floors: likewise by chunk and position group.
        auto_captured: whether the source run was captured for this sweep.
        captured_source_run: its name, if it was.
        hook_grids: one for each hook if `hooks` was given.
        below_noise: of the first hook.
        warnings: what the caller should know.
        cells_total: cells of all grids.
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


class StartEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="start"):
    """A sweep begins; fields as in `PatchSweepResponse`, the counts predicted."""

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


class CellEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="cell"):
    """One cell, final.

    Attributes:
        hook: name of the hook.
        layer: patched layer.
        position: patched position.
        value: of the metric; `None` where it is undefined or the cell failed.
        below_noise: see `HookGrid`.
        free: whether it took no computing.
        error: why it failed.
    """

    hook: str
    layer: int
    position: int
    value: float | None
    below_noise: bool = False
    free: bool = False
    error: str | None = None


class SummaryEvent(PatchSweepResponse, frozen=True, kw_only=True, tag_field="type", tag="summary"):
    """The whole response, as the last event."""


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """The sweep broke off; no summary follows."""

    error: str


class CapturedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was captured to stay.

    Attributes:
        source_run: its name.
        num_prompt_tokens: tokens of its prompt.
        layers: captured layers.
        size_bytes: memory that it takes.
        clean_logprob: of the answer; `None` without one.
        clean_logit_diff: of answer and foil; `None` without them.
    """

    source_run: str
    num_prompt_tokens: int
    layers: tuple[int, ...]
    size_bytes: int
    clean_logprob: float | None = None
    clean_logit_diff: float | None = None


class ModelResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What can be patched.

    Attributes:
        model_id: what the model is called.
        hooks: hooks that can be injected; where `z` can, so can `z.<head>`.
        refusals: why the others cannot.
        num_layers: decoder layers.
        num_heads: attention heads of a layer, 0 where `z` cannot be injected.
        has_tokenizer: whether prompts may be text.
        saes: SAEs whose latents can be patched.
        engine: which engine computes.
        engine_reason: why.
    """

    model_id: str
    hooks: tuple[str, ...]
    refusals: dict[str, str]
    num_layers: int
    num_heads: int
    has_tokenizer: bool
    saes: tuple[str, ...]
    engine: Engine
    engine_reason: str


class TokensResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, taken apart.

    Attributes:
        token_ids: its tokens.
        tokens: what each spells; `None` without a tokenizer.
        positions: the positions asked for.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...] | None
    positions: tuple[int, ...]


def report_alignment(alignment: Alignment, positions: Sequence[int]) -> AlignmentReport:
    """Return what is told of an alignment, for the positions that are swept."""
    return AlignmentReport(
        n_clean=alignment.n_clean,
        n_corrupt=alignment.n_corrupt,
        prefix_len=alignment.prefix_len,
        suffix_len=alignment.suffix_len,
        unaligned_positions=tuple(one.position for one in alignment.unaligned),
        shifts=tuple(alignment.sources[position] - position for position in positions),
    )


def report_unaligned(unaligned: Sequence[Unaligned]) -> tuple[Skipped, ...]:
    """Return what is told of positions that are not swept."""
    return tuple(Skipped(position=one.position, reason=one.reason) for one in unaligned)
