"""What the patching service says of a sweep, as the lines of a run's record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from aegir_stream.sweep_events import SweepCell, SweepEnded, SweepSkipped, SweepStarted

if TYPE_CHECKING:
    from aegir_adapters.patching.request import PatchSweepRequest
    from aegir_adapters.patching.response import CellEvent, PatchSweepResponse, StartEvent

__all__ = ["About", "cell_of", "ended_of", "started_of"]

_LOWER_IS_BETTER = frozenset({"kl", "rank"})
_COUNTED_FROM_ZERO = "recovered"
"""How the metrics begin whose unpatched value is 0 and whose clean value is 1."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the service does not say.

    Attributes:
        model: how the model was named.
        tokens: the patched prompt, token by token.
        clean_tokens: likewise the source's.
        answer: what is measured.
        foil: what it is compared with.
        checkpoint: the checkpoint, if it is one.
        step: its step.
    """

    model: str
    tokens: tuple[str, ...]
    clean_tokens: tuple[str, ...] | None
    answer: str | None
    foil: str | None
    checkpoint: str | None
    step: int | None


def started_of(start: StartEvent, request: PatchSweepRequest, about: About) -> SweepStarted:
    """Return the first line."""
    from_zero = start.metric.startswith(_COUNTED_FROM_ZERO)
    shifts = start.alignment.shifts if start.alignment else None
    return SweepStarted(
        **msgspec.structs.asdict(about),
        hooks=start.hooks,
        layers=start.layers,
        positions=start.positions,
        metric=start.metric,
        clean_positions=_moved(start.positions, shifts) if shifts is not None else None,
        alpha=request.alpha,
        source=request.source,
        unpatched=0.0 if from_zero else start.corrupt,
        restored=1.0 if from_zero else start.clean,
        lower_is_better=start.metric in _LOWER_IS_BETTER,
        corrupt=start.corrupt,
        clean=start.clean,
        cells=start.cells_total,
        free=start.cells_free,
        deduplicated=start.cells_deduplicated,
        computed=start.cells_computed,
        token_layers=start.token_layers,
        token_layers_naive=start.token_layers_naive,
        engine=start.engine,
        engine_reason=start.engine_reason,
        warnings=start.warnings,
        skipped=tuple(SweepSkipped(position=s.position, reason=s.reason) for s in start.skipped),
    )


def cell_of(cell: CellEvent) -> SweepCell:
    """Return the line of a cell."""
    return SweepCell(
        hook=cell.hook,
        layer=cell.layer,
        position=cell.position,
        value=cell.value,
        below_noise=cell.below_noise,
        free=cell.free,
        error=cell.error,
    )


def ended_of(response: PatchSweepResponse) -> SweepEnded:
    """Return the last line of a sweep that came to its end."""
    return SweepEnded(
        status="finished",
        noise_floor=response.noise_floor,
        token_layers=response.token_layers,
        rank_correlation=response.rank_correlation,
        elapsed_s=response.elapsed_s,
    )


def _moved(positions: tuple[int, ...], shifts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(position + shift for position, shift in zip(positions, shifts, strict=True))
