"""What to overwrite, where, and with which values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from aegir_adapters.patching.hooks import Hook, Landing, Site
from aegir_adapters.patching.sources import Source
from aegir_adapters.patching.trace import Trace

__all__ = ["Patch", "Values", "landing_site", "patched_values"]

_SITES: Final[dict[Landing, Site]] = {
    "pre": "resid_pre",
    "attn": "attn_out",
    "mlp": "mlp_out",
    "post": "resid_post",
    "z": "z",
}


class Patch(NamedTuple):
    """Rows of one lane that are overwritten in one place of the model.

    Attributes:
        lane: index among the lanes of the trace.
        landing: `pre`, `attn`, `mlp` or `z`; what lands at `post` lands at `pre` of the next layer.
        layer: the layer, for `pre` up to the number of layers.
        start: the row from which on anything can differ.
        rows: the overwritten rows; none for an unpatched rider.
        values: what to put there. Shape (rows, d_model), of `z` (rows, heads, d_head).
    """

    lane: int
    landing: Landing
    layer: int
    start: int
    rows: tuple[int, ...]
    values: Tensor | None

    @classmethod
    def of(
        cls, hook: Hook, layer: int, *, lane: int, rows: tuple[int, ...], values: Tensor
    ) -> Patch:
        """Return the patch that a hook makes in a layer; values as it lands."""
        if hook.landing == "post":
            return cls(lane, "pre", layer + 1, min(rows), rows, values)
        return cls(lane, hook.landing, layer, min(rows), rows, values)

    @classmethod
    def rider(cls, lane: int, boundary: int, start: int) -> Patch:
        """Return a patch that overwrites nothing."""
        return cls(lane, "pre", boundary, start, (), None)

    @property
    def boundary(self) -> int:
        """The layer that is the first to read the patch as a whole."""
        return self.layer if self.landing == "pre" else self.layer + 1


class Values(NamedTuple):
    """What a hook of one layer puts at each position.

    Attributes:
        positions: of the patched prompt.
        landing: what to put where the hook lands. Shape (positions, ...).
        before: what the unpatched run has there.
        changed: whether they differ. Shape (positions,), bool, on the CPU.
    """

    positions: list[int]
    landing: Tensor
    before: Tensor
    changed: list[bool]


def landing_site(landing: Landing) -> Site:
    """Return the site whose activations a landing overwrites."""
    return _SITES[landing]


def patched_values(
    trace: Trace,
    source: Source,
    hook: Hook,
    *,
    layer: int,
    lane: int,
    positions: Sequence[int],
    alpha: float,
) -> Values:
    """Return what a hook puts in place of a lane's activations.

    Raises:
        OptionError: the source lacks something.
    """
    current = trace.at(hook.site, layer, lane, positions)
    new = _blended(current, source.rows(hook, layer, positions, current), alpha)
    if hook.head is not None:
        one = current.clone()
        one[:, hook.head] = new[:, hook.head]
        new = one
    changed = (new != current).flatten(1).any(1).tolist()
    site = landing_site(hook.landing)
    if site == hook.site:
        return Values(list(positions), new, current, changed)
    before = trace.at(site, layer, lane, positions)
    return Values(list(positions), before + (new - current), before, changed)


def _blended(current: Tensor, source: Tensor, alpha: float) -> Tensor:
    """Return ``(1 - alpha) * current + alpha * source``, exact at both ends."""
    if alpha == 1:
        return source
    return current.clone() if alpha == 0 else torch.lerp(current, source, alpha)
