"""What `aegir features` tells: rows for programs, and how they look to a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import msgspec

from aegir_adapters.cli.report import LABEL, Column, Report
from aegir_stream.views import FeatureRow, FeatureTable, FiringState, Rate, Turnover, Word, rates

__all__ = [
    "Labels",
    "RankedLine",
    "RateLine",
    "WordLine",
    "changes",
    "firing_rates",
    "ranking",
    "words",
]

Labels: TypeAlias = Mapping[int, Mapping[int, str]]
"""Label by layer and latent."""

_SPARE = ("chance", "d", "rate", "rho")

_RATE = {name: name for name in ("firing_rate", "mean", "mean_active", "highest")}
_CONTRAST = {
    "difference": "difference",
    "difference_low": "low",
    "difference_high": "high",
    "standard_error": "standard_error",
    "effect_size": "effect_size",
    "contrast_p_value": "p_value",
}
_LENGTH_CONTROLLED = {
    "length_controlled": "correlation",
    "length_controlled_p_value": "p_value",
}
_RANK = {"rho": "rho", "rho_low": "low", "rho_high": "high", "rho_completions": "n"}
_CONTROL = {"control_difference": "difference"}


class RankedLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One latent against the reward; names as in `FeatureRow` and what that holds."""

    layer: int
    latent: int
    label: str | None = None
    completions: int
    groups: int
    firing_rate: float | None = None
    mean: float | None = None
    mean_active: float | None = None
    highest: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    standard_error: float | None = None
    effect_size: float | None = None
    contrast_p_value: float | None = None
    length_controlled: float | None = None
    length_controlled_p_value: float | None = None
    rho: float | None = None
    rho_low: float | None = None
    rho_high: float | None = None
    rho_completions: int | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    control_difference: float | None = None
    control_p_adjusted: float | None = None


class RateLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often and how hard one latent fires."""

    layer: int
    latent: int
    label: str | None = None
    firing_rate: float
    mean: float
    mean_active: float
    highest: float
    first_step: int
    last_step: int


class WordLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One latent that completions sustain which passed the gate."""

    layer: int
    latent: int
    label: str | None = None
    passed: int
    failed: int
    share_passed: float
    share_failed: float | None = None


def ranking(table: FeatureTable, firing: FiringState, labels: Labels, *, top: int) -> Report:
    """Return the latents that go with the reward most clearly."""
    seen = {
        layer: {rate.latent: rate for rate in rates(firing.whole(layer))} for layer in firing.layers
    }
    rows = [
        _ranked(row, seen.get(row.layer, {}).get(row.latent), labels) for row in table.rows[:top]
    ]
    columns: list[Column] = [
        ("layer", lambda row: str(row.layer)),
        ("latent", lambda row: str(row.latent)),
        ("rate", lambda row: _share(row.firing_rate)),
        ("contrast", lambda row: _around(row.difference, row.difference_low)),
        ("d", lambda row: _signed(row.effect_size, 2)),
        ("rho", lambda row: _around(row.rho, row.rho_low, 2)),
        ("r|len", lambda row: _signed(row.length_controlled, 2)),
        ("p adj.", lambda row: _probability(row.p_adjusted)),
        ("chance", lambda row: _signed(row.control_difference)),
    ]
    remark = (
        f"{table.found} of {table.tested} latents go with the reward at q = {table.q:g}; "
        f"where activations are dealt out at random it is {table.found_in_control}"
    )
    columns += _label_column(labels)
    return Report(rows=rows, columns=columns, remarks=[remark], spare=_SPARE)


def firing_rates(firing: FiringState, labels: Labels, *, top: int) -> Report:
    """Return the latents that fire most often, for a run without completions to compare."""
    rows = [
        RateLine(
            layer=layer,
            label=labels.get(layer, {}).get(rate.latent),
            first_step=firing.seen[layer][rate.latent][0],
            last_step=firing.seen[layer][rate.latent][1],
            **msgspec.structs.asdict(rate),
        )
        for layer in firing.layers
        for rate in rates(firing.whole(layer))
    ]
    rows.sort(key=lambda row: (-row.firing_rate, row.layer, row.latent))
    columns: list[Column] = [
        ("layer", lambda row: str(row.layer)),
        ("latent", lambda row: str(row.latent)),
        ("rate", lambda row: _share(row.firing_rate)),
        ("mean", lambda row: _number(row.mean)),
        ("mean active", lambda row: _number(row.mean_active)),
        ("highest", lambda row: _number(row.highest)),
        ("steps", lambda row: f"{row.first_step}-{row.last_step}"),
    ]
    return Report(rows=rows[:top], columns=[*columns, *_label_column(labels)])


def words(found: Iterable[Word], labels: Labels, *, top: int) -> Report:
    """Return the latents that most successes sustain."""
    rows = [
        WordLine(label=labels.get(word.layer, {}).get(word.latent), **msgspec.structs.asdict(word))
        for word in found
    ]
    columns: list[Column] = [
        ("layer", lambda row: str(row.layer)),
        ("latent", lambda row: str(row.latent)),
        ("in successes", lambda row: _share(row.share_passed)),
        ("in others", lambda row: _share(row.share_failed)),
        ("successes", lambda row: str(row.passed)),
        ("others", lambda row: str(row.failed)),
    ]
    return Report(rows=rows[:top], columns=[*columns, *_label_column(labels)])


def changes(found: Iterable[Turnover]) -> Report:
    """Return how the active latents change from window to window."""
    columns: list[Column] = [
        ("layer", lambda row: str(row.layer)),
        ("steps", lambda row: f"{row.first_step}-{row.last_step}"),
        ("tokens", lambda row: str(row.tokens)),
        ("active", lambda row: str(row.active)),
        ("new", lambda row: str(len(row.emerged))),
        ("gone", lambda row: str(len(row.vanished))),
        ("turnover", lambda row: _share(row.turnover)),
        ("jaccard", lambda row: _number(row.jaccard)),
        ("vs first", lambda row: _number(row.jaccard_first)),
    ]
    return Report(rows=list(found), columns=columns)


def _ranked(row: FeatureRow, rate: Rate | None, labels: Labels) -> RankedLine:
    return RankedLine(
        layer=row.layer,
        latent=row.latent,
        label=labels.get(row.layer, {}).get(row.latent),
        completions=row.completions,
        groups=row.groups,
        p_value=row.p_value,
        p_adjusted=row.p_adjusted,
        control_p_adjusted=row.control_p_adjusted,
        **_figures(rate, _RATE),
        **_figures(row.contrast, _CONTRAST),
        **_figures(row.length_controlled, _LENGTH_CONTROLLED),
        **_figures(row.rank, _RANK),
        **_figures(row.control, _CONTROL),
    )


def _figures(found: msgspec.Struct | None, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what was found under other names; nothing of what was not found."""
    return {ours: getattr(found, theirs) for ours, theirs in names.items()} if found else {}


def _label_column(labels: Labels) -> list[Column]:
    return [(LABEL, lambda row: row.label or "")] if labels else []


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _signed(value: float | None, decimals: int = 3) -> str:
    return "-" if value is None else f"{value:+.{decimals}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _around(value: float | None, low: float | None, decimals: int = 3) -> str:
    if value is None or low is None:
        return "-"
    return f"{value:+.{decimals}f} ±{value - low:.{decimals}f}"


def _probability(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"  # noqa: PLR2004 - three decimals
