"""Reading the residual stream while a chosen forward pass runs."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct, field

from aegir_adapters.trainer.autoencoder import TopLatents
from aegir_adapters.trainer.health import HealthMeter
from aegir_adapters.trainer.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from aegir_adapters.trainer.autoencoder import SparseAutoencoder
    from aegir_adapters.trainer.health import HealthReading

__all__ = ["Capture", "CapturedPass", "untraced"]


class CapturedPass(Struct, kw_only=True, eq=False):
    """What the hooked layers gave during one forward pass.

    Attributes:
        tokens: the tokens that were read.
        step: optimizer step of the pass.
        latents: what each layer's SAE said about them, in the order of the layers' calls.
    """

    tokens: Tokens
    step: int
    latents: dict[int, TopLatents] = field(default_factory=dict)


class Capture:
    """Forward hooks on decoder layers that read chosen tokens while a pass is armed.

    A layer may be called several times in a pass (some releases of transformers checkpoint
    `__call__`); the first call counts. Only a layer's *output* is read: it is the residual stream
    in every architecture, and the one place whose hook runs once under gradient checkpointing.

    Args:
        saes: the SAE of each hooked layer.
        top_k: latents to keep per token.
        guard: calls a function so that its failure reaches nobody.
    """

    def __init__(
        self,
        saes: Mapping[int, SparseAutoencoder],
        *,
        top_k: int,
        guard: Callable[..., Any],
    ) -> None:
        self._saes = dict(saes)
        self._top_k = top_k
        self._guard = guard
        self._meters = {layer: HealthMeter(layer) for layer in self._saes}
        self._handles: list[RemovableHandle] = []
        self._armed: CapturedPass | None = None
        self.phase = "other"
        self.calls: Counter[str] = Counter()

    @property
    def layers(self) -> tuple[int, ...]:
        """The hooked layers."""
        return tuple(self._saes)

    def hook(self, layers: nn.ModuleList) -> None:
        """Register the hooks; before the model's first call, since a compiled one keeps its own.

        Raises:
            IndexError: a hooked layer does not exist.
        """
        for layer, sae in self._saes.items():
            parameter = next(layers[layer].parameters(), None)
            if parameter is not None:
                self._saes[layer] = sae.to(parameter.device)
            heard = partial(self._heard, layer)
            self._handles.append(layers[layer].register_forward_hook(untraced(heard)))

    def unhook(self) -> None:
        """Remove the hooks. Idempotent."""
        while self._handles:
            self._handles.pop().remove()

    def arm(self, tokens: Tokens, *, step: int) -> None:
        """Read these tokens from the next call of each hooked layer on."""
        self._armed = CapturedPass(tokens=tokens, step=step) if tokens.count else None

    def disarm(self) -> CapturedPass | None:
        """Stop reading; return what was read since `arm`, if anything."""
        armed, self._armed = self._armed, None
        return armed if armed is not None and armed.latents else None

    def close_step(self) -> list[HealthReading]:
        """Return the health of each layer over the step that ends here."""
        readings = (meter.close_step() for meter in self._meters.values())
        return [reading for reading in readings if reading is not None]

    def _heard(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        self.calls[self.phase] += 1
        armed = self._armed
        if armed is not None and layer not in armed.latents:
            self._guard(self._read, armed, layer, output)

    def _read(self, armed: CapturedPass, layer: int, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        # The loss pass may run under autocast, which would round the SAE's sums to bfloat16.
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            x = armed.tokens.select(hidden)
            top = self._saes[layer].top(x, k=self._top_k)
            self._meters[layer].add(x, top)
        armed.latents[layer] = top


def untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that `torch.compile` calls without looking into it.

    Tracing ours would fail, inside the training loop and behind every guard. Costs 2 us a call.
    """
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled
