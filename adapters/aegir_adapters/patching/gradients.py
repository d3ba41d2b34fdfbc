"""Gradients of metrics with respect to the activations of the unpatched runs.

One forward and one backward for each metric, with the weights untouched: gradients are taken of
activations alone, so no parameter gets one, and none needs to ask for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from aegir_adapters.patching.decoder import first_tensor
from aegir_adapters.patching.hooks import Site
from aegir_adapters.patching.lanes import Lane
from aegir_adapters.patching.metrics import MetricName, Reference, score
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.setting import Stage
from aegir_adapters.patching.trace import watching
from aegir_stream.errors import OptionError

__all__ = ["GradientError", "Place", "gradients"]

Place = tuple[Site, int]
"""A site, and a layer; `resid_pre` has one layer more, which is what leaves the last."""


class GradientError(OptionError):
    """A model has no gradient where one is needed."""


def gradients(
    model: PatchableModel,
    stage: Stage,
    places: Sequence[Place],
    *,
    metrics: tuple[MetricName, ...],
    pairs: Sequence[tuple[Reference, tuple[Lane, ...]]],
    baselines: Mapping[Lane, Tensor],
) -> dict[Place, Tensor]:
    """Return the gradients of raw metrics, summed over the pairs that have a lane in this stage.

    Lanes do not see each other, so each lane's part is the gradient of its own pair's metric.

    Args:
        model: the model.
        stage: lanes of one length.
        places: with respect to which activations: of residuals, and of the branches' outputs.
        metrics: names of raw metrics.
        pairs: tokens and lanes of every pair.
        baselines: logits of every lane, unpatched.

    Returns:
        By place, shape (metrics, lanes, length, ...), as the stage's trace has the site.

    Raises:
        GradientError: no gradient gets there.
    """
    if any(parameter.is_inference() for parameter in model.module.parameters()):
        raise _none(model, "its weights were made in inference mode")
    with ExitStack() as stack:
        stack.enter_context(model.computing())
        stack.enter_context(torch.enable_grad())
        seen = _run(model, stage, places)
        final = seen["resid_pre", model.num_layers]
        goals = _goals(model, stage, final, metrics, pairs, baselines)
        for place in places:
            if not seen[place].requires_grad:
                raise _none(model, f"{_named(place)} is cut off")
        asked = [seen[place] for place in places]
        found = [_differentiated(model, goals[name], asked) for name in metrics]
    shapes = [stage.trace.sites[site][0].shape for site, _ in places]
    return {
        place: _stacked(model, place, own).reshape(len(metrics), *shape)
        for place, shape, *own in zip(places, shapes, *found, strict=True)
    }


def _named(place: Place) -> str:
    return f"{place[0]} of layer {place[1]}"


def _stacked(model: PatchableModel, place: Place, found: Sequence[Tensor | None]) -> Tensor:
    there = [gradient for gradient in found if gradient is not None]
    if len(there) < len(found):
        raise _none(model, f"none gets to {_named(place)}")
    return torch.stack(there)


def _none(model: PatchableModel, reason: str) -> GradientError:
    return GradientError(
        f"Expected `method` to be exact for `{type(model.module).__name__}`, got 'attribution' - "
        f"the model has no gradient: {reason}",
        hint="Compute the cells, which takes none",
    )


def _run(model: PatchableModel, stage: Stage, places: Sequence[Place]) -> dict[Place, Tensor]:
    """Run a stage's prompts and return the activations at some places, and what leaves the end.

    What goes on is a copy, so that nothing is overwritten that a gradient is taken of.
    """
    seen: dict[Place, Tensor] = {}

    def see(site: Site, layer: int, tensor: Tensor) -> Tensor:
        seen[site, layer] = tensor
        return tensor.clone()

    # Nothing below the first of them needs a gradient, so none goes there.
    lowest = min(layer for _, layer in places)
    with ExitStack() as stack:
        stack.enter_context(watching(model.parts, {site for site, _ in places}, see))
        for layer, part in enumerate(model.parts):
            hook = _entering(see, layer, leaf=layer == lowest)
            handle = part.layer.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        final = model.run_layers(stage.token_ids)
    top = model.num_layers
    see("resid_pre", top, final if lowest < top else final.detach().requires_grad_())
    return seen


def _entering(see: Callable[[Site, int, Tensor], Tensor], layer: int, *, leaf: bool) -> Any:
    """Return a hook that shows the residual that enters a layer, cut off from what made it."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        residual = first_tensor(args) if args else kwargs["hidden_states"]
        # Models whose weights are frozen have no gradients of their own.
        residual = see("resid_pre", layer, residual.detach().requires_grad_() if leaf else residual)
        return (
            ((residual, *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": residual})
        )

    return hook


def _goals(
    model: PatchableModel,
    stage: Stage,
    final: Tensor,
    metrics: tuple[MetricName, ...],
    pairs: Sequence[tuple[Reference, tuple[Lane, ...]]],
    baselines: Mapping[Lane, Tensor],
) -> dict[MetricName, Tensor]:
    """Return what to differentiate: each metric, of all pairs that have a lane here."""
    rows = torch.cat([final[row, -lane.reads :] for row, lane in enumerate(stage.lanes)])
    live: dict[Lane, Tensor] = {}
    parts = torch.split(model.logits(rows), [lane.reads for lane in stage.lanes])
    if not parts[0].requires_grad:
        raise _none(model, "its forward leaves no trace for one")
    for lane, logits in zip(stage.lanes, parts, strict=True):
        # Of two equal lanes, an answer's and a foil's, patches name the first.
        live.setdefault(lane, logits)
    goals: dict[MetricName, Tensor] = {}
    for reference, lanes in pairs:
        if live.keys().isdisjoint(lanes):
            continue
        found = score(metrics, reference, [live.get(lane, baselines[lane])[None] for lane in lanes])
        for name, value in found.items():
            goals[name] = goals.get(name, 0.0) + value.sum()
    return goals


def _differentiated(
    model: PatchableModel, goal: Tensor, places: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return a goal's gradients; `None` where none gets."""
    if not goal.requires_grad:
        # Such as an answer's log-probability, among sequences of foils only.
        return tuple(map(torch.zeros_like, places))
    try:
        return torch.autograd.grad(goal, places, retain_graph=True, allow_unused=True)
    except NotImplementedError as error:
        raise _none(model, f"{error}") from error
