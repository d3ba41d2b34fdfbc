"""The nouns of a patch sweep: how it began, its cells, and how it ended.

Each stands on a line of its own in a file of the sweep's own, told apart by the key ``"type"``.
Cells come in any order, in appends of any size, and one that comes twice counts once: the last
line of a cell is the one that holds.

Compatibility is that of `aegir_stream.events`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

__all__ = [
    "SweepCell",
    "SweepEnded",
    "SweepEnding",
    "SweepEvent",
    "SweepExtreme",
    "SweepSkipped",
    "SweepStarted",
]

SweepEnding: TypeAlias = Literal["finished", "failed", "cancelled"]
"""How a sweep ended that could say so."""


class SweepSkipped(Struct, frozen=True, kw_only=True):
    """A position that was asked for and is not swept, and why."""

    position: int
    reason: str


class SweepStarted(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="start"
):
    """A sweep begins: everything is known but its cells.

    The first group of fields says what is asked, the second what is known of it, the third which
    process answers.

    Attributes:
        model: what is patched, as it was named.
        tokens: the patched prompt, the text of each token.
        hooks: hooks, in the order asked for; one grid each.
        layers: rows of every grid.
        positions: columns of every grid: positions in `tokens`.
        metric: what a cell holds.
        clean_tokens: likewise the source run's prompt; absent for a source that has none.
        clean_positions: for each of `positions` its counterpart in `clean_tokens`.
        answer: what is measured, as text.
        foil: what it is compared with, as text.
        alpha: ``(1 - alpha) * unpatched + alpha * source``.
        source: what kind of source the patches come from.
        checkpoint: the run's checkpoint that was loaded, if it was one.
        step: its step.
        unpatched: the metric of the unpatched prompt: where nothing happens.
        restored: the metric of the clean prompt: where everything is brought back.
        lower_is_better: whether smaller values mean that more is brought back.
        corrupt: what the metric is made of, for the unpatched prompt.
        clean: likewise for the clean prompt.
        cells: how many cells there will be.
        free: how many of them follow without computing.
        deduplicated: how many of them equal another one.
        computed: how many are computed.
        token_layers: rows that enter a decoder layer for them.
        token_layers_naive: how many rows one forward for each cell would take.
        engine: which engine computes.
        engine_reason: why.
        warnings: what a reader should know.
        skipped: positions that are not swept.
        sweep: name of the sweep; that of its file.
        ts: wall-clock seconds since the epoch.
        host: name of the host.
        pid: number of the process.
        pid_started: when that began, see `aegir_stream.processes.Process`.
        pid_namespace: where the number counts, see there.
    """

    model: str
    tokens: tuple[str, ...]
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    metric: str
    clean_tokens: tuple[str, ...] | None = None
    clean_positions: tuple[int, ...] | None = None
    answer: str | None = None
    foil: str | None = None
    alpha: float = 1.0
    source: str = "run"
    checkpoint: str | None = None
    step: int | None = None

    unpatched: float | None = None
    restored: float | None = None
    lower_is_better: bool = False
    corrupt: float | None = None
    clean: float | None = None
    cells: int = 0
    free: int = 0
    deduplicated: int = 0
    computed: int = 0
    token_layers: int = 0
    token_layers_naive: int = 0
    engine: str = ""
    engine_reason: str = ""
    warnings: tuple[str, ...] = ()
    skipped: tuple[SweepSkipped, ...] = ()

    sweep: str = ""
    ts: float | None = None
    host: str | None = None
    pid: int | None = None
    pid_started: str | None = None
    pid_namespace: str | None = None


class SweepCell(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="cell"
):
    """One cell, final.

    Attributes:
        hook: name of the hook.
        layer: patched layer.
        position: patched position.
        value: of the metric; absent where that is undefined or the cell failed.
        below_noise: whether it differs from the unpatched value by no more than an unpatched row
            of the same batch does.
        free: whether it followed without computing.
        error: why it failed.
    """

    hook: str
    layer: int
    position: int
    value: float | None = None
    below_noise: bool = False
    free: bool = False
    error: str | None = None


class SweepExtreme(Struct, frozen=True, kw_only=True):
    """The cell of a hook that brings back the most."""

    hook: str
    layer: int
    position: int
    value: float


class SweepEnded(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="end"
):
    """A sweep is over; no line follows.

    Attributes:
        status: `finished`, `failed` or `cancelled`.
        reason: why it failed.
        best: for each hook the cell that brings back the most.
        noise_floor: how far unpatched rows strayed at most, in the metric's unit.
        cells: how many cells were written.
        failed: how many of them failed.
        token_layers: rows that entered a decoder layer.
        rank_correlation: of the preview's estimates with the exact effects.
        elapsed_s: seconds of computing.
        ts: wall-clock seconds since the epoch.
    """

    status: SweepEnding
    reason: str | None = None
    best: tuple[SweepExtreme, ...] = ()
    noise_floor: float | None = None
    cells: int = 0
    failed: int = 0
    token_layers: int | None = None
    rank_correlation: float | None = None
    elapsed_s: float | None = None
    ts: float | None = None


SweepEvent: TypeAlias = SweepStarted | SweepCell | SweepEnded
