"""All hooks of a prompt in one forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aegir_adapters.patching.hooks import Site
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.sources import SourceRun
from aegir_adapters.patching.trace import Trace, trace
from aegir_stream.errors import LayerError, OptionError

__all__ = ["capture", "kept"]


def capture(
    model: PatchableModel,
    token_ids: Sequence[int],
    *,
    hooks: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    device: str | torch.device | None = None,
) -> SourceRun:
    """Return the activations of a prompt, from one forward pass.

    Args:
        model: the model.
        token_ids: the prompt.
        hooks: names of hooks; what each reads is captured. All that can be injected by default.
        layers: all by default.
        positions: all by default.
        device: where to keep them; by default where the model is.

    Raises:
        OptionError: a hook or a position does not fit.
        LayerError: a layer does not fit.
    """
    names = [hook.name for hook in model.hooks] if hooks is None else hooks
    sites = {model.hook(name).site for name in names}
    chosen = range(model.num_layers) if layers is None else sorted(set(layers))
    where = range(len(token_ids)) if positions is None else sorted(set(positions))
    if not token_ids or not set(where) <= set(range(len(token_ids))):
        raise OptionError(
            f"Expected positions in 0..{len(token_ids) - 1}, got {list(where)}",
            hint="Positions count the tokens of the prompt from 0",
        )
    if not set(chosen) <= set(range(model.num_layers)):
        raise LayerError(
            f"Expected layers in 0..{model.num_layers - 1}, got {list(chosen)}",
            hint=f"Choose among the model's {model.num_layers} decoder layers, counted from 0",
        )
    ids = torch.tensor([list(token_ids)], dtype=torch.long, device=model.device)
    run = trace(model, model.parts, ids, sites=sites)
    return kept(model, run, tuple(token_ids), sites, tuple(chosen), tuple(where), device)


def kept(
    model: PatchableModel,
    run: Trace,
    token_ids: tuple[int, ...],
    sites: set[Site],
    layers: tuple[int, ...],
    positions: tuple[int, ...],
    device: str | torch.device | None = None,
    *,
    lane: int = 0,
) -> SourceRun:
    """Return what is to be kept of one lane of a trace."""
    index = torch.tensor(positions, dtype=torch.long, device=model.device)
    activations = {
        site: torch.stack([run.sites[site][layer][lane, index] for layer in layers]).to(device)
        for site in sorted(sites)
    }
    return SourceRun(
        token_ids=token_ids,
        model_id=model.model_id,
        layers=layers,
        positions=positions,
        activations=activations,
    )
