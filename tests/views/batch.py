"""The statistics of features as their formulas have it, over everything at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from aegir_stream.events import Completion, SAELogRecord
from views.features import Event

np = pytest.importorskip("numpy")
stats = pytest.importorskip("scipy.stats")


class Batch(NamedTuple):
    """One layer: activations (completions, latents), rewards, lengths, and groups as (step, id)."""

    activations: Any
    rewards: Any
    lengths: Any
    groups: list[tuple[int, int]]


def activations_of(record: SAELogRecord, *, latents: int = 6) -> Any:
    """Return (latents,) the activations of a record; what is no number counts 0."""
    row = np.zeros(latents)
    values = np.array(record.top_feature_activations)
    row[list(record.top_feature_indices)] = np.where(np.isfinite(values), values, 0.0)
    return row


def batch(events: Sequence[Event], layer: int, *, summary: str = "mean", latents: int = 6) -> Batch:
    """Return the completions of a layer that count, by step, group and id."""
    tokens: dict[tuple[int, int], list[Any]] = {}
    for event in events:
        if isinstance(event, Completion) or event.completion is None:
            continue
        if event.layer_index == layer and not event.pass_:
            row = activations_of(event, latents=latents)
            tokens.setdefault((event.step, event.completion), []).append(row)
    lines = [
        event
        for event in events
        if isinstance(event, Completion)
        and not event.pass_
        and not event.iteration
        and math.isfinite(event.reward)
        and (event.step, event.completion) in tokens
    ]
    lines.sort(key=lambda one: (one.step, one.group, one.completion))
    rows = [_summary(np.array(tokens[one.step, one.completion]), summary) for one in lines]
    return Batch(
        np.array(rows).reshape(len(rows), latents),
        np.array([one.reward for one in lines]),
        np.array([float(one.length) for one in lines]),
        [(one.step, one.group) for one in lines],
    )


def _summary(tokens: Any, summary: str) -> Any:
    if summary == "presence":
        return (tokens != 0).any(axis=0).astype(float)
    return (tokens != 0).mean(axis=0) if summary == "share" else tokens.mean(axis=0)


def differing(data: Batch) -> Batch:
    """Return the completions of the groups in which rewards differ."""
    kept = [
        group
        for group in dict.fromkeys(data.groups)
        if len({r for r, g in zip(data.rewards, data.groups, strict=True) if g == group}) > 1
    ]
    mask = np.array([group in kept for group in data.groups], dtype=bool)
    groups = [group for group in data.groups if group in kept]
    return Batch(data.activations[mask], data.rewards[mask], data.lengths[mask], groups)


def members(data: Batch) -> list[Any]:
    """Return the rows of each group."""
    names = list(dict.fromkeys(data.groups))
    return [np.array([g == name for g in data.groups]) for name in names]


def contrast_of(data: Batch, latent: int) -> tuple[float, float, float, float]:
    """Return difference, standard error, p-value of t and effect size over differing groups."""
    weights, contrasts, inside, compared = [], [], 0.0, 0
    for rows in members(data):
        x, y = data.activations[rows, latent], data.rewards[rows]
        sides = np.where(
            np.isclose(y, y.mean(), rtol=0, atol=1e-9 * np.ptp(y)), 0, np.sign(y - y.mean())
        )
        up, down = x[sides > 0], x[sides < 0]
        weights.append(len(up) * len(down) / (len(up) + len(down)))
        contrasts.append(up.mean() - down.mean())
        inside += ((up - up.mean()) ** 2).sum() + ((down - down.mean()) ** 2).sum()
        compared += len(up) + len(down) - 2
    w, d = np.array(weights), np.array(contrasts)
    difference = (w * d).sum() / w.sum()
    error = math.sqrt(len(w) / (len(w) - 1) * (w**2 * (d - difference) ** 2).sum()) / w.sum()
    p = 2 * stats.t.sf(abs(difference) / error, len(w) - 1) if error else math.nan
    effect = difference / math.sqrt(inside / compared) if inside and compared else math.nan
    return difference, error, p, effect


def partial_of(data: Batch, latent: int) -> tuple[float, float]:
    """Return the partial correlation given the length within groups, and the p-value of t."""
    groups = members(data)
    dummies = np.array(groups, dtype=float).T
    design = np.column_stack([dummies, data.lengths])
    sides = np.column_stack([data.activations[:, latent], data.rewards])
    u, v = (sides - design @ np.linalg.lstsq(design, sides, rcond=None)[0]).T
    scores = np.array([(u[rows] * v[rows]).sum() for rows in groups])
    t = stats.ttest_1samp(scores, 0.0).statistic
    p = 2 * stats.t.sf(abs(t), len(groups) - 2)
    return (u * v).sum() / math.sqrt((u * u).sum() * (v * v).sum()), p
