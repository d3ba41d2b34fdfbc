"""A preview of all patches from one backward pass.

To first order, overwriting an activation changes the objective by
``(new - old) . gradient`` at that place (attribution patching: Nanda, 2023). Two forwards and one
backward estimate every hook, layer and position. The estimate misses what saturates, and is used
for one thing: the exact cells that it holds for the most important are computed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from aegir_adapters.patching.cells import Job
from aegir_adapters.patching.decoder import first_tensor
from aegir_adapters.patching.hooks import Site
from aegir_adapters.patching.lanes import Lane
from aegir_adapters.patching.metrics import Reference
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.patches import Patch, Values, landing_site
from aegir_adapters.patching.setting import Stage
from aegir_adapters.patching.trace import watching

__all__ = ["estimate", "rank_correlation"]

Gradients = dict[Site, list[Tensor | None]]


def estimate(
    model: PatchableModel,
    stages: dict[int, Stage],
    references: Sequence[Reference],
    jobs: Sequence[Job],
    lanes: Sequence[tuple[Lane, ...]],
) -> None:
    """Set the promise of each job: the size of its estimated effect.

    Args:
        model: the model.
        stages: the unpatched runs.
        references: tokens of each pair; the objective is the logit difference of answer and foil,
            or the answer's log-probability without a foil.
        jobs: what is estimated.
        lanes: of each pair.
    """
    if not jobs:
        return
    landings = {patch.landing for job in jobs for patch in job.patches}
    sites = {landing_site(landing) for landing in landings}
    found = {
        length: _gradients(model, stage, references, lanes, sites)
        for length, stage in stages.items()
    }
    effects: dict[int, list[float]] = {}
    for job in jobs:
        job.promise = 0.0
        for lane, patch, values in zip(lanes[job.pair], job.patches, job.values, strict=True):
            if id(values) not in effects:
                effects[id(values)] = _effects(found[lane.length], patch, values)
            job.promise += sum(effects[id(values)][column] for column in job.columns)
        job.promise = abs(job.promise)


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


def _effects(gradients: Gradients, patch: Patch, values: Values) -> list[float]:
    """Return the estimated effect of all values that one of a patch's are among."""
    gradient = gradients[landing_site(patch.landing)][patch.layer]
    if gradient is None:
        return [0.0] * len(values.positions)
    change = (values.landing - values.before) * gradient[patch.lane, values.positions]
    return change.flatten(1).sum(1).tolist()


def _gradients(
    model: PatchableModel,
    stage: Stage,
    references: Sequence[Reference],
    lanes: Sequence[tuple[Lane, ...]],
    sites: set[Site],
) -> Gradients:
    """Return the objective's gradients; `resid_pre` has one more layer, what leaves the last."""
    seen: dict[Site, list[Tensor]] = {site: [] for site in {*sites, "resid_pre"}}

    def see(site: Site, _: int, tensor: Tensor) -> None:
        seen[site].append(tensor)

    with ExitStack() as stack:
        stack.enter_context(model.computing())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(watching(model.parts, sites - {"resid_pre"}, see))
        for part in model.parts:
            hook = _leaf if part is model.parts[0] else _passed
            stack.callback(
                part.layer.register_forward_pre_hook(
                    hook(seen["resid_pre"]), with_kwargs=True
                ).remove
            )
        final = model.run_layers(stage.token_ids)
        seen["resid_pre"].append(final)
        goal = sum(
            _objective(model, final[row], lane, references[lane.pair], lanes[lane.pair])
            for row, lane in enumerate(stage.lanes)
        )
        flat = [tensor for site in seen for tensor in seen[site]]
        gradients = iter(torch.autograd.grad(goal, flat, allow_unused=True))  # type: ignore[arg-type]
    shapes = stage.trace.sites
    return {site: [_shaped(next(gradients), shapes[site][0]) for _ in seen[site]] for site in seen}


def _shaped(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.reshape(like.shape)


def _objective(
    model: PatchableModel, final: Tensor, lane: Lane, reference: Reference, lanes: Sequence[Lane]
) -> Tensor:
    """Return a lane's part of its pair's objective."""
    log_probs = model.logits(final[-lane.reads :]).float().log_softmax(-1)
    rows = torch.arange(lane.reads, device=final.device)
    foil = reference.foil
    if lane != lanes[0]:
        assert foil is not None  # noqa: S101 - a second lane is a foil's
        return -log_probs[rows, foil].sum()
    goal = log_probs[rows, reference.answer].sum()
    if foil is not None and len(lanes) == 1:
        goal = goal - log_probs[-1, foil[0]]
    return goal


def _leaf(seen: list[Tensor]) -> Any:
    """Return a hook that makes the first residual a leaf, for models whose weights are frozen."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        residual = first_tensor(args) if args else kwargs["hidden_states"]
        leaf = residual.detach().requires_grad_()
        seen.append(leaf)
        return ((leaf, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": leaf})

    return hook


def _passed(seen: list[Tensor]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(first_tensor(args) if args else kwargs["hidden_states"])

    return hook
