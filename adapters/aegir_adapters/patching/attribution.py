"""First-order estimates of all patches from one backward pass for each metric.

Overwriting an activation changes a metric by about ``(new - old) . gradient`` at that place
(attribution patching: Nanda, 2023). Two forwards and one backward estimate every hook, layer and
position. The estimate misses what saturates. It serves to compute the exact cells that it holds for
the most important first, and as a preview of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from aegir_adapters.patching.cells import Job
from aegir_adapters.patching.gradients import Place, gradients
from aegir_adapters.patching.lanes import Lane
from aegir_adapters.patching.metrics import UNSLOPED, MetricName, raw_metrics
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.patches import Patch, Values, landing_site
from aegir_adapters.patching.scoring import Raw, Scale
from aegir_adapters.patching.setting import Setting

__all__ = ["estimate", "ordering_metric", "rank_correlation"]


def estimate(
    model: PatchableModel,
    setting: Setting,
    scales: Sequence[Scale],
    jobs: Sequence[Job],
    lanes: Sequence[tuple[Lane, ...]],
    *,
    metrics: tuple[MetricName, ...],
) -> list[Raw]:
    """Return by how much each job's patch changes each raw metric, to first order.

    Args:
        model: the model.
        setting: the unpatched runs.
        scales: what each pair is measured by.
        jobs: what is estimated.
        lanes: of each pair.
        metrics: names of raw metrics, of those that have a gradient.

    Raises:
        GradientError: the model has none.
    """
    pairs = [(scale.reference, own) for scale, own in zip(scales, lanes, strict=True)]
    asked: dict[int, dict[Place, None]] = defaultdict(dict)
    for job in jobs:
        for lane, patch in zip(lanes[job.pair], job.patches, strict=True):
            asked[lane.length][_place(patch)] = None
    found = {
        length: gradients(
            model,
            setting.stages[length],
            list(places),
            metrics=metrics,
            pairs=pairs,
            baselines=setting.baselines,
        )
        for length, places in asked.items()
    }
    effects: dict[int, list[list[float]]] = {}
    changes: list[Raw] = []
    for job in jobs:
        # An answer and a foil that differ in their last tokens only have equal lanes.
        patches = zip(job.patches, job.values, strict=True)
        own = dict(zip(lanes[job.pair], patches, strict=True))
        for lane, (patch, values) in own.items():
            if id(values) not in effects:
                effects[id(values)] = _effects(found[lane.length][_place(patch)], patch, values)
        rows = [effects[id(values)][column] for _, values in own.values() for column in job.columns]
        changes.append(dict(zip(metrics, map(sum, zip(*rows, strict=True)), strict=True)))
    return changes


def _place(patch: Patch) -> Place:
    return landing_site(patch.landing), patch.layer


def _effects(gradient: Tensor, patch: Patch, values: Values) -> list[list[float]]:
    """Return the effects of all values that a patch's are among, by position and metric."""
    slope = gradient[:, patch.lane, values.positions].flatten(2).float()
    change = (values.landing.float() - values.before.float()).flatten(1)
    found: list[list[float]] = torch.einsum("mpd,pd->pm", slope, change).tolist()
    return found


def ordering_metric(scales: Sequence[Scale]) -> MetricName:
    """Return the metric whose estimates order exact cells: the first that has a gradient."""
    level: set[MetricName] = set(UNSLOPED)
    if any(scale.clean is None for scale in scales):
        level.add("kl")
    return next((name for name in raw_metrics(scales[0].metrics) if name not in level), "logprob")


def rank_correlation(estimates: Sequence[float], exact: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; `None` for fewer than two values, or equal ones."""
    ranks = torch.stack([_ranks(torch.tensor(v, dtype=torch.float64)) for v in (estimates, exact)])
    centred = ranks - ranks.mean(1, keepdim=True)
    spread = centred.norm(dim=1).prod()
    return float((centred[0] * centred[1]).sum() / spread) if spread > 0 else None


def _ranks(values: Tensor) -> Tensor:
    """Return ranks, equal values sharing their mean rank."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0) - (counts - 1) / 2
    return ranks[inverse].double()
