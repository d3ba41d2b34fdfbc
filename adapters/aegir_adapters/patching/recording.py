"""A sweep of the patching service, written down as the lines of a run's record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from aegir_adapters.patching.request import PatchSweepRequest
from aegir_adapters.patching.response import (
    AlignmentReport,
    CellEvent,
    MetricGrid,
    PatchSweepResponse,
    StartEvent,
    SweptPair,
)
from aegir_adapters.patching.running import RunningSweep
from aegir_stream.sweep_events import (
    SweepCell,
    SweepEnded,
    SweepEvent,
    SweepPair,
    SweepSkipped,
    SweepStarted,
    SweptLatent,
)
from aegir_stream.sweep_log import SweepLog
from aegir_stream.views.sweep import SweepGrids

__all__ = [
    "LOWER_IS_BETTER",
    "About",
    "AboutPair",
    "Watch",
    "cell_of",
    "ended_of",
    "ends_of",
    "record_sweep",
    "started_of",
]

Watch = Callable[[Sequence[SweepEvent], SweepGrids], None]
"""Called with what was recorded just now, and with all of it folded."""

LOWER_IS_BETTER = frozenset({"kl", "rank"})
"""Metrics of which less means that more is brought back."""

_COUNTED_FROM_ZERO = "recovered"
"""How the metrics begin whose unpatched value is 0 and whose clean value is 1."""

_LOPSIDED = 0.1
"""By how much the prompts of a pair must be apart, as a share of what the furthest ones are."""


class AboutPair(msgspec.Struct, frozen=True, kw_only=True):
    """What the service does not say of a pair of prompts.

    Attributes:
        tokens: the patched prompt, token by token.
        clean_tokens: likewise the source's.
        answer: what is measured.
        foil: what it is compared with.
        activations: of the swept latent at each of `tokens`, if one is swept.
        clean_activations: likewise at each of `clean_tokens`.
    """

    tokens: tuple[str, ...]
    clean_tokens: tuple[str, ...] | None = None
    answer: str | None = None
    foil: str | None = None
    activations: tuple[float, ...] = ()
    clean_activations: tuple[float, ...] = ()


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the service does not say.

    Attributes:
        model: how the model was named.
        tokens: the patched prompt, token by token; the first one of several.
        clean_tokens: likewise the source's.
        answer: what is measured.
        foil: what it is compared with.
        checkpoint: the checkpoint, if it is one.
        step: its step, or that of the policy in training.
        latent: the latent that is patched, if one is.
        pairs: every pair of prompts, if the request has several; the first one as above.
        warnings: what a reader should know beside what the service says.
    """

    model: str
    tokens: tuple[str, ...]
    clean_tokens: tuple[str, ...] | None
    answer: str | None
    foil: str | None
    checkpoint: str | None
    step: int | None
    latent: SweptLatent | None = None
    pairs: tuple[AboutPair, ...] = ()
    warnings: tuple[str, ...] = ()


def record_sweep(running: RunningSweep, log: SweepLog, *, watch: Watch | None = None) -> None:
    """Run a sweep to its end, each batch of cells recorded as soon as it is final.

    The log is ended whatever happens: as `failed` or `cancelled` by what is raised.

    Args:
        running: the sweep, as the service has begun it; whoever began it lets it go.
        log: its log, of which nothing but the start is written.
        watch: told of what was recorded, with the end last.

    Raises:
        OSError: the disk did not take the end.
        Interrupted: the sweep was asked to stop.
    """
    watch = watch or _ignore
    try:
        with log:
            watch([log.started], log.grids)
            for batch in running.batches():
                cells = [cell_of(cell) for cell in batch]
                log.append(cells)
                watch(cells, log.grids)
            log.end(ended_of(running.summary()))
    finally:
        watch([log.grids.ended] if log.grids.ended else [], log.grids)


def started_of(start: StartEvent, request: PatchSweepRequest, about: About) -> SweepStarted:
    """Return the first line."""
    pairs = _pairs_of(start, about)
    clean_positions = _counterparts(start.column_positions, start.alignment)
    first = pairs[0] if pairs else None
    zero, one = ends_of(start.metric, first or start)
    return SweepStarted(
        model=about.model,
        tokens=about.tokens,
        clean_tokens=about.clean_tokens,
        answer=about.answer,
        foil=about.foil,
        checkpoint=about.checkpoint,
        step=about.step,
        latent=about.latent,
        hooks=start.hooks,
        layers=start.layers,
        positions=start.positions,
        metric=start.metric,
        clean_positions=None if pairs or not clean_positions else sum(clean_positions, ()),
        alpha=request.alpha,
        source=request.source,
        method=start.method,
        columns=start.columns or (),
        pairs=pairs,
        unpatched=zero,
        restored=one,
        lower_is_better=start.metric in LOWER_IS_BETTER,
        corrupt=first.corrupt if first else start.corrupt,
        clean=first.clean if first else start.clean,
        cells=start.cells_total,
        free=start.cells_free,
        deduplicated=start.cells_deduplicated,
        computed=start.cells_computed,
        estimated=start.cells_estimated,
        token_layers=start.token_layers,
        token_layers_naive=start.token_layers_naive,
        engine=start.engine,
        engine_reason=start.engine_reason,
        warnings=(*about.warnings, *start.warnings, *_lopsided(start.metric, pairs)),
        skipped=tuple(
            SweepSkipped(position=s.position, reason=s.reason, pair=s.pair or 0)
            for s in start.skipped
        ),
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
        pair=cell.pair or 0,
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


def _pairs_of(start: StartEvent, about: About) -> tuple[SweepPair, ...]:
    """Return all pairs; the only one where its columns are groups, none where it says no more."""
    if start.pairs is not None:
        return tuple(
            _pair_of(start.metric, swept, told)
            for swept, told in zip(start.pairs, about.pairs, strict=True)
        )
    if start.columns is None:
        return ()
    only = AboutPair(
        tokens=about.tokens,
        clean_tokens=about.clean_tokens,
        answer=about.answer,
        foil=about.foil,
        activations=about.latent.activations if about.latent else (),
        clean_activations=about.latent.clean_activations if about.latent else (),
    )
    return (_pair_of(start.metric, start, only),)


def _pair_of(metric: str, swept: SweptPair | StartEvent, told: AboutPair) -> SweepPair:
    zero, one = ends_of(metric, swept)
    return SweepPair(
        tokens=told.tokens,
        positions=swept.column_positions,
        clean_tokens=told.clean_tokens,
        clean_positions=_counterparts(swept.column_positions, swept.alignment),
        answer=told.answer,
        foil=told.foil,
        unpatched=zero,
        restored=one,
        corrupt=swept.corrupt,
        clean=swept.clean,
        activations=told.activations,
        clean_activations=told.clean_activations,
    )


def _lopsided(metric: str, pairs: tuple[SweepPair, ...]) -> tuple[str, ...]:
    """Return a warning if the mean of shares is that of a pair with little to share."""
    apart = {
        index: abs(pair.clean - pair.corrupt)
        for index, pair in enumerate(pairs)
        if pair.clean is not None and pair.corrupt is not None
    }
    if not metric.startswith(_COUNTED_FROM_ZERO) or not apart:
        return ()
    least, most = min(apart, key=apart.__getitem__), max(apart.values())
    if apart[least] >= _LOPSIDED * most:
        return ()
    warning = (
        f"Pair {least} has little to recover: its prompts are {apart[least]:.2g} apart, those of "
        f"another pair {most:.2g}. In the mean its shares outweigh the others"
    )
    return (warning,)


def ends_of(
    metric: str, swept: SweptPair | SweepPair | StartEvent | MetricGrid
) -> tuple[float | None, float | None]:
    """Return what the metric is of the unpatched and of the clean prompt."""
    return (0.0, 1.0) if metric.startswith(_COUNTED_FROM_ZERO) else (swept.corrupt, swept.clean)


def _counterparts(
    columns: tuple[tuple[int, ...], ...], alignment: AlignmentReport | None
) -> tuple[tuple[int, ...], ...] | None:
    """Return for each column its positions in the clean prompt; `None` if there is none."""
    if alignment is None:
        return None
    shifts = iter(alignment.shifts)
    return tuple(tuple(position + next(shifts) for position in column) for column in columns)


def _ignore(events: Sequence[SweepEvent], grids: SweepGrids) -> None:
    """Watch nothing."""
