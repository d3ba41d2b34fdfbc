"""All cells by whole forwards, a batch at a time.

Each row of a batch is the prompt with one patch. Plain forward hooks overwrite, whatever the model
is made of: what the staircase is compared with, and what stands in for it where it does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, nn

from aegir_adapters.patching.decoder import first_tensor
from aegir_adapters.patching.hooks import Site
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.patches import Patch, landing_site
from aegir_adapters.patching.trace import Trace, watching

__all__ = ["Forwards"]

BATCH_TOKENS: Final = 1 << 13
"""Tokens of one batch."""


class Forwards:
    """Computes patches of one trace.

    Args:
        model: the model.
        trace: its unpatched run.
        token_ids: the prompts of the trace's lanes. Shape (lanes, length), int64.

    Attributes:
        token_layers: rows that entered a layer so far.
    """

    def __init__(self, model: PatchableModel, trace: Trace, token_ids: Tensor) -> None:
        self._model = model
        self._trace = trace
        self._token_ids = token_ids
        self.token_layers = 0

    @staticmethod
    def cost(patch: Patch, *, num_layers: int, length: int) -> int:
        """Return how many rows will enter a layer for the sake of a patch: all."""
        del patch
        return num_layers * length

    def run(self, patches: Sequence[Patch], *, reads: int) -> Tensor:
        """Return the residuals that leave the last layer.

        Args:
            patches: of any lanes.
            reads: how many of the last rows to return.

        Returns:
            Shape (patches, reads, d_model).
        """
        size = max(1, BATCH_TOKENS // self._trace.length)
        with self._model.computing():
            batches = [
                self._batch(patches[first : first + size])[:, -reads:].clone()
                for first in range(0, len(patches), size)
            ]
        return torch.cat(batches)

    def _batch(self, patches: Sequence[Patch]) -> Tensor:
        self.token_layers += self._model.num_layers * len(patches) * self._trace.length
        final: list[tuple[int, Patch]] = []
        with ExitStack() as stack:
            sites: set[Site] = set()
            for row, patch in enumerate(patches):
                if patch.landing != "pre":
                    sites.add(landing_site(patch.landing))
                elif patch.layer == self._model.num_layers:
                    final.append((row, patch))
            for layer, part in enumerate(self._model.parts):
                entering = [
                    (row, patch)
                    for row, patch in enumerate(patches)
                    if patch.landing == "pre" and patch.layer == layer
                ]
                if entering:
                    hook = _input_overwritten(entering)
                    handle = part.layer.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            stack.enter_context(watching(self._model.parts, sites, _overwriting(patches)))
            lanes = torch.tensor([patch.lane for patch in patches], device=self._model.device)
            left = self._model.run_layers(self._token_ids[lanes])
        return _overwritten(left, final)


def _overwritten(tensor: Tensor, entering: Sequence[tuple[int, Patch]]) -> Tensor:
    """Return (batch, length, ...) with each patch's values in its row of the batch."""
    tensor = tensor.clone()
    for row, patch in entering:
        if patch.values is not None:
            tensor[row, list(patch.rows)] = patch.values.reshape(len(patch.rows), -1)
    return tensor


def _overwriting(patches: Sequence[Patch]) -> Any:
    """Return what overwrites the activations that `watching` shows."""

    def see(site: Site, layer: int, seen: Tensor) -> Tensor | None:
        entering = [
            (row, patch)
            for row, patch in enumerate(patches)
            if patch.layer == layer
            and patch.landing != "pre"
            and landing_site(patch.landing) == site
        ]
        if not entering:
            return None
        whole = seen.reshape(len(patches), -1, seen.shape[-1])
        return _overwritten(whole, entering).reshape(seen.shape)

    return see


def _input_overwritten(entering: Sequence[tuple[int, Patch]]) -> Any:
    """Return a hook that overwrites the residual that enters a layer."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (_overwritten(first_tensor(args), entering), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": _overwritten(kwargs["hidden_states"], entering)}

    return hook
