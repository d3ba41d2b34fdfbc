"""Reading the residual stream while a chosen forward pass runs."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from msgspec import Struct, field
from torch import Tensor

from aegir_adapters.trainer.autoencoder import Latents
from aegir_adapters.trainer.health import HealthMeter
from aegir_adapters.trainer.tokens import Tokens
from aegir_adapters.trainer.transfer import to_device
from aegir_stream.aside import is_aside
from aegir_stream.events import PassName

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from aegir_adapters.trainer.autoencoder import SparseAutoencoder
    from aegir_adapters.trainer.health import HealthReading, HealthReference
    from aegir_adapters.trainer.sampling import Sampler

__all__ = ["Armed", "Capture", "CapturedPass", "LatentRows", "untraced"]


class LatentRows(Struct, frozen=True, kw_only=True, eq=False):
    """What is recorded of tokens (see `Latents`), and nothing beside it."""

    indices: Tensor
    activations: Tensor
    reconstruction_loss: Tensor

    @classmethod
    def of(cls, latents: Latents) -> LatentRows:
        """Let go of what is not recorded."""
        return cls(
            indices=latents.indices,
            activations=latents.activations,
            reconstruction_loss=latents.reconstruction_loss,
        )

    @classmethod
    def joined(cls, parts: Sequence[Latents]) -> LatentRows:
        """Return the tokens of all parts, in their order."""
        return cls(
            indices=torch.cat([part.indices for part in parts]),
            activations=torch.cat([part.activations for part in parts]),
            reconstruction_loss=torch.cat([part.reconstruction_loss for part in parts]),
        )

    def keep(self, chosen: Tensor) -> LatentRows:
        """Return the tokens at these indices, int64 (m,) on the CPU, in ascending order."""
        places = to_device(chosen, self.indices.device)
        return LatentRows(
            indices=self.indices.index_select(0, places),
            activations=self.activations.index_select(0, places),
            reconstruction_loss=self.reconstruction_loss.index_select(0, places),
        )


class CapturedPass(Struct, kw_only=True, eq=False):
    """What the hooked layers gave during one forward pass.

    Attributes:
        tokens: the tokens that were read.
        step: optimizer step of the pass.
        pass_: name of the pass.
        latents: what each layer's SAE said about them, in the order of the layers' calls.
    """

    tokens: Tokens
    step: int
    pass_: PassName = "loss"
    latents: dict[int, Latents] = field(default_factory=dict)

    def awaits(self, layer: int) -> bool:
        """Tell whether a layer's next call is read: its first is, one that recomputes is not."""
        return layer not in self.latents

    def part(self, layer: int, shape: torch.Size) -> CapturedPass:  # noqa: ARG002 - Armed's
        """Return itself: the pass is one forward."""
        return self

    def keep(self, chosen: Tensor, tokens: Tokens) -> CapturedPass:
        """Return what was said of these of the tokens, int64 (m,), which are called `tokens`."""
        if len(chosen) == self.tokens.count:
            kept = self.latents
        else:
            kept = {layer: LatentRows.of(of).keep(chosen) for layer, of in self.latents.items()}
        return CapturedPass(tokens=tokens, step=self.step, pass_=self.pass_, latents=kept)


class Armed(Protocol):
    """What the next calls of hooked layers are read for."""

    def awaits(self, layer: int) -> bool:
        """Tell whether a layer's next call is read."""
        ...

    def part(self, layer: int, shape: torch.Size) -> CapturedPass | None:
        """Return what that call brings, by the shape of its output; `None` if nothing of it."""
        ...


class Capture:
    """Forward hooks on decoder layers that read chosen tokens while a pass is armed.

    A layer may be called several times in a pass (some releases of transformers checkpoint
    `__call__`); the first call counts. One that is no part of the training (`aegir_stream.aside`)
    is neither read nor counted. Only a layer's *output* is read: it is the residual stream
    in every architecture, and the one place whose hook runs once under gradient checkpointing.

    Args:
        saes: the SAE of each hooked layer.
        top_k: latents to keep per token.
        guard: calls a function so that its failure reaches nobody.
        sampler: leaves tokens out before they are read; `None` reads them all.
        references: what the health of a run that began before is measured against.
    """

    def __init__(
        self,
        saes: Mapping[int, SparseAutoencoder],
        *,
        top_k: int,
        guard: Callable[..., Any],
        sampler: Sampler | None = None,
        references: Mapping[int, HealthReference] | None = None,
    ) -> None:
        self._saes = dict(saes)
        self._sampler = sampler
        self._top_k = top_k
        self._guard = guard
        known = references or {}
        self._meters = {n: HealthMeter(n, reference=known.get(n)) for n in self._saes}
        self._devices: dict[int, torch.device] = {}
        self._handles: list[RemovableHandle] = []
        self._armed: Armed | None = None
        self.phase = "other"
        self.calls: Counter[str] = Counter()
        self.heard: Counter[int] = Counter()

    @property
    def layers(self) -> tuple[int, ...]:
        """The hooked layers."""
        return tuple(self._saes)

    @property
    def token_bytes(self) -> int:
        """Memory that what is recorded of a token takes on its device, at all layers."""
        return (8 * self._top_k + 4) * len(self._saes)

    def hook(self, layers: nn.ModuleList) -> None:
        """Register the hooks. What was compiled until now is compiled anew, once.

        Raises:
            IndexError: a hooked layer does not exist.
        """
        for layer in self._saes:
            parameter = next(layers[layer].parameters(), None)
            if parameter is not None and not parameter.is_meta:
                self._sae_on(parameter.device, layer)
            heard = partial(self._heard, layer)
            self._handles.append(layers[layer].register_forward_hook(untraced(heard)))
        # Code that was compiled while there were no hooks would never call them.
        torch.compiler.reset()

    def unhook(self) -> None:
        """Remove the hooks. Idempotent."""
        while self._handles:
            self._handles.pop().remove()

    def arm(self, tokens: Tokens, *, step: int, pass_: PassName = "loss") -> None:
        """Read these tokens from the next call of each hooked layer on, if they are sampled."""
        tokens = self.thinned(tokens, step=step)
        passing = CapturedPass(tokens=tokens, step=step, pass_=pass_)
        self._armed = passing if tokens.count else None

    def thinned(self, tokens: Tokens, *, step: int, whole: bool = True) -> Tokens:
        """Return those of the tokens that are sampled (see `Sampler.thin`)."""
        if self._sampler is None:
            return tokens
        return self._sampler.thin(tokens, step=step, whole=whole)

    def arm_parts(self, parts: Armed) -> None:
        """Read what the next calls of each hooked layer bring of a pass, until `disarm`."""
        self._armed = parts

    def disarm(self) -> CapturedPass | None:
        """Stop reading; return what was read since `arm`, if anything."""
        armed, self._armed = self._armed, None
        return armed if isinstance(armed, CapturedPass) and armed.latents else None

    def close_step(self) -> list[HealthReading]:
        """Return the health of each layer over the step that ends here."""
        readings = (meter.close_step() for meter in self._meters.values())
        return [reading for reading in readings if reading is not None]

    def references(self) -> dict[int, HealthReference]:
        """Return what each layer's health is measured against; waits for the device."""
        found = {layer: meter.reference() for layer, meter in self._meters.items()}
        return {layer: reference for layer, reference in found.items() if reference is not None}

    def _heard(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        if is_aside():
            return
        self.calls[self.phase] += 1
        self.heard[layer] += 1
        armed = self._armed
        if armed is not None and armed.awaits(layer):
            self._guard(self._read, armed, layer, output)

    def _sae_on(self, device: torch.device, layer: int) -> SparseAutoencoder:
        """Return a layer's SAE where the residual stream is; offloaded weights are elsewhere."""
        if self._devices.get(layer) != device:
            self._saes[layer] = self._saes[layer].to(device)
            self._devices[layer] = device
        return self._saes[layer]

    def _read(self, armed: Armed, layer: int, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        part = armed.part(layer, hidden.shape)
        if part is None:
            return
        # The loss pass may run under autocast, which would round the SAE's sums to bfloat16.
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            x = part.tokens.select(hidden)
            top = self._sae_on(hidden.device, layer).top(x, k=self._top_k)
            if part.pass_ == "loss":
                self._meters[layer].add(x, top)
        part.latents[layer] = top if part.pass_ == "loss" else LatentRows.of(top)


def untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that `torch.compile` calls without looking into it.

    Tracing ours would fail, inside the training loop and behind every guard. Costs 2 us a call.
    """
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled
