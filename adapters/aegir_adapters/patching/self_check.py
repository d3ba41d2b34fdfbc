"""Which engine a model can be patched with, found by trying.

Every hook is patched in the first and the last layer, by the staircase and by plain forward hooks.
Only where the logits agree is the staircase used.
"""

from __future__ import annotations

from typing import Final

import torch

from aegir_adapters.patching.attention import tappable
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.forwards import Forwards
from aegir_adapters.patching.hooks import Hook, Site, parse_hook
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.parts import probe_ids
from aegir_adapters.patching.patches import Patch, patched_values
from aegir_adapters.patching.results import Engine
from aegir_adapters.patching.sources import RunSource
from aegir_adapters.patching.staircase import Staircase
from aegir_adapters.patching.trace import trace

__all__ = ["choose_engine", "sites_for"]

_POSITION: Final = 2
"""The patched position: there are rows before it, and rows that can see it."""

_READS: Final = 2
"""Rows that are read, as with an answer of two tokens."""

_EXACT: Final = {torch.float64: 1e-8, torch.float32: 1e-4}
_COARSE: Final = 5e-2
"""How far logits may be apart, as a share of the largest; `_COARSE` in half precision."""


def choose_engine(model: PatchableModel) -> tuple[Engine, str]:
    """Return an engine, and why that one."""
    if not tappable(model.module):
        return "forwards", (
            "the model's attention function takes no mask of ours; load it with "
            'attn_implementation="sdpa" for the staircase'
        )
    for index, part in enumerate(model.parts):
        if part.attention is None:
            return "forwards", (
                f"layer {index}, a `{type(part.layer).__name__}`, does not call transformers' "
                "AttentionInterface"
            )
    hook, apart = _worst(model)
    accepted = _EXACT.get(next(model.module.parameters()).dtype, _COARSE)
    if apart <= accepted:
        return "staircase", f"its logits agree with those of plain forward hooks to {apart:.0e}"
    return "forwards", (
        f"the staircase's logits are off by {apart:.0e} of the largest with {hook} patched, more "
        f"than {accepted:.0e}"
    )


def sites_for(hooks: list[Hook]) -> set[Site]:
    """Return whose activations must be known to patch these hooks."""
    sites: set[Site] = {hook.site for hook in hooks}
    if any(hook.landing == "attn" for hook in hooks):
        sites.add("attn_out")
    return sites


def _worst(model: PatchableModel) -> tuple[str, float]:
    """Return the hook for which the engines are furthest apart, as a share of the logits."""
    hooks = [*model.hooks, *([parse_hook("z.0")] if model.num_heads else [])]
    ids = probe_ids(model, prompts=2)
    names = [hook.name for hook in hooks]
    source = RunSource(run=capture(model, ids[1].tolist(), hooks=names))
    unpatched = trace(model, model.parts, ids[:1], sites=sites_for(hooks), tap=True)
    patches = []
    for hook in hooks:
        for layer in {0, model.num_layers - 1}:
            values = patched_values(
                unpatched, source, hook, layer=layer, lane=0, positions=[_POSITION], alpha=1.0
            )
            patches.append(Patch.of(hook, layer, lane=0, rows=(_POSITION,), values=values.landing))
    rows = [
        Staircase(model, unpatched).run(patches, reads=_READS),
        Forwards(model, unpatched, ids[:1]).run(patches, reads=_READS),
    ]
    with model.computing():
        ours, theirs = (model.logits(left.flatten(0, 1)).float() for left in rows)
    apart = (ours - theirs).abs().reshape(len(patches), -1).amax(1) / theirs.abs().max()
    # What is no number is as far apart as can be.
    apart = apart.nan_to_num(nan=torch.inf)
    worst = int(apart.argmax())
    return hooks[worst // len({0, model.num_layers - 1})].name, float(apart[worst])
