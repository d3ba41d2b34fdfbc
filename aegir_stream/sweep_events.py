"""The nouns of a patch sweep: how it began, its cells, and how it ended.

Each stands on a line of its own in a file of the sweep's own, told apart by the key ``"type"``.
Cells come in any order, in appends of any size, and one that comes twice counts once: the last
line of a cell is the one that holds.

A sweep of several pairs of prompts has one grid for each pair and hook; a pair's cells say which.
What is drawn of such a sweep is the mean over its pairs (`aegir_stream.views.sweep`).

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
    "SweepMethod",
    "SweepPair",
    "SweepSkipped",
    "SweepStarted",
    "SweptLatent",
]

SweepEnding: TypeAlias = Literal["finished", "failed", "cancelled"]
"""How a sweep ended that could say so."""

SweepMethod: TypeAlias = Literal["exact", "attribution"]
"""`exact`: each cell was computed. `attribution`: each is a first-order estimate, from the gradient
of the unpatched prompt; `free` cells are exact all the same."""


class SweepSkipped(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A position that was asked for and is not swept, and why.

    Attributes:
        position: of the patched prompt.
        reason: why.
        pair: which pair's prompt, if there are several.
    """

    position: int
    reason: str
    pair: int = 0


class SweptLatent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latent of an SAE whose contribution is patched; the SAE's error term stays.

    Attributes:
        layer: the layer whose output the SAE reads.
        index: which of its latents.
        sae: what the SAE is called: its directory, or the name that a server knows it by.
        activations: of the latent at each of `SweepStarted.tokens`, unpatched; empty if not known.
        weights_sha256: what tells the SAE's weights from others; empty if not known.
        clean_activations: at each of `SweepStarted.clean_tokens`, which is what is put in.
    """

    layer: int
    index: int
    sae: str
    activations: tuple[float, ...] = ()
    weights_sha256: str = ""
    clean_activations: tuple[float, ...] = ()


class SweepPair(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of several pairs of prompts; fields as in `SweepStarted`, but for the positions.

    Attributes:
        tokens: the patched prompt.
        positions: for each column the positions of `tokens` that it patches together: one, or those
            of a group.
        clean_tokens: the source's prompt; absent for a source that has none.
        clean_positions: for each of `positions` its counterparts in `clean_tokens`.
        answer: what is measured.
        foil: what it is compared with.
        unpatched: the metric of the unpatched prompt.
        restored: the metric of the clean prompt.
        corrupt: what the metric is made of, for the unpatched prompt.
        clean: likewise for the clean prompt.
        activations: of the swept latent at each of `tokens`.
        clean_activations: likewise at each of `clean_tokens`.
    """

    tokens: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    clean_tokens: tuple[str, ...] | None = None
    clean_positions: tuple[tuple[int, ...], ...] | None = None
    answer: str | None = None
    foil: str | None = None
    unpatched: float | None = None
    restored: float | None = None
    corrupt: float | None = None
    clean: float | None = None
    activations: tuple[float, ...] = ()
    clean_activations: tuple[float, ...] = ()


class SweepStarted(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="start"
):
    """A sweep begins: everything is known but its cells.

    The first group of fields says what is asked, the second what is known of it, the third which
    process answers. What is said of prompts at the top is said of the first pair, if there are
    several; `cells` and what else is counted is that of all pairs.

    Attributes:
        model: what is patched, as it was named.
        tokens: the patched prompt, the text of each token.
        hooks: hooks, in the order asked for; one grid each.
        layers: rows of every grid.
        positions: columns of every grid: positions in `tokens`; with `columns` the number of each.
        metric: what a cell holds.
        clean_tokens: likewise the source run's prompt; absent for a source that has none.
        clean_positions: for each of `positions` its counterpart in `clean_tokens`.
        answer: what is measured, as text.
        foil: what it is compared with, as text.
        alpha: ``(1 - alpha) * unpatched + alpha * source``.
        source: what kind of source the patches come from.
        checkpoint: the run's checkpoint that was loaded, if it was one.
        step: its step, or that of the policy in training, which has no checkpoint.
        method: whether cells are computed, or estimated.
        columns: a name for each column, whose positions are patched together; empty where a column
            is a position.
        latent: the latent that is patched, if `source` is `latent`.
        pairs: the pairs of prompts, if there are several or columns have names; else empty.
        unpatched: the metric of the unpatched prompt: where nothing happens.
        restored: the metric of the clean prompt: where everything is brought back.
        lower_is_better: whether smaller values mean that more is brought back.
        corrupt: what the metric is made of, for the unpatched prompt.
        clean: likewise for the clean prompt.
        cells: how many cells there will be.
        free: how many of them follow without computing.
        deduplicated: how many of them equal another one.
        computed: how many are computed.
        estimated: how many are estimated in place of that.
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
        study: what the sweep is one of, where the same is swept again and again while a policy is
            trained.
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
    method: SweepMethod = "exact"
    columns: tuple[str, ...] = ()
    latent: SweptLatent | None = None
    pairs: tuple[SweepPair, ...] = ()

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
    estimated: int = 0

    sweep: str = ""
    ts: float | None = None
    host: str | None = None
    pid: int | None = None
    pid_started: str | None = None
    pid_namespace: str | None = None
    study: str | None = None


class SweepCell(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="cell"
):
    """One cell, final.

    Attributes:
        hook: name of the hook.
        layer: patched layer.
        position: patched position; in every pair that of its column, see `SweepStarted.positions`.
        value: of the metric; absent where that is undefined or the cell failed.
        below_noise: whether it differs from the unpatched value by no more than an unpatched row
            of the same batch does.
        free: whether it followed without computing.
        error: why it failed.
        pair: which of `SweepStarted.pairs`; 0 where there are none.
    """

    hook: str
    layer: int
    position: int
    value: float | None = None
    below_noise: bool = False
    free: bool = False
    error: str | None = None
    pair: int = 0


class SweepExtreme(Struct, frozen=True, kw_only=True):
    """The cell of a hook that brings back the most; of several pairs that of their mean."""

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
