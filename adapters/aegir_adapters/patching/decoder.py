"""A decoder held still: in evaluation mode, without gradients, run as far as is needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from aegir_adapters.patching.attention import Tap, tapped
from aegir_stream.errors import AegirError

__all__ = ["Decoder", "PatchingError", "Stop", "first_tensor", "with_first_tensor"]


class PatchingError(AegirError, ValueError):
    """A model cannot be patched."""


class Stop(Exception):  # noqa: N818 - no error: the rest of a forward is of no use
    """Ends a forward early."""


class Decoder:
    """A causal language model and its decoder layers.

    Args:
        module: the model, in whatever wraps it.

    Attributes:
        module: the model.
        layers: its decoder layers.

    Raises:
        PatchingError: its layers do not stand in one list of the declared length.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layers = list(_decoder_layers(module))

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def element_size(self) -> int:
        """Bytes of one number of the model."""
        return next(self.module.parameters()).element_size()

    @cached_property
    def widest(self) -> int:
        """The largest number of values that a layer makes of one row."""
        weights = (weight for weight in self.layers[-1].parameters() if weight.ndim > 1)
        return max(max(weight.shape[-2:]) for weight in weights)

    @contextmanager
    def computing(self, tap: Tap | None = None) -> Iterator[None]:
        """Hold the model in evaluation mode, without gradients, behind a tap; then restore it."""
        training = [module for module in self.module.modules() if module.training]
        self.module.eval()
        try:
            with torch.no_grad(), tapped(self.module, tap):
                yield
        finally:
            for module in training:
                module.training = True

    def run_layers(self, token_ids: Tensor) -> Tensor:
        """Return the residuals that leave the last layer; what comes after it does not run.

        To be called while `computing`.

        Args:
            token_ids: shape (prompts, length), int64.

        Returns:
            Shape (prompts, length, d_model).
        """
        left: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            left.append(first_tensor(output))
            raise Stop

        handle = self.layers[-1].register_forward_hook(stop)
        try:
            self.module(input_ids=token_ids, **self._no_cache)
        except Stop:
            pass
        finally:
            handle.remove()
        return left[0]

    def logits(self, rows: Tensor) -> Tensor:
        """Return what the model makes of residuals that leave its last layer.

        The model's own code does it, from the final norm to a soft cap of the logits: it is run
        over a single token, and what its last layer returns is replaced. To be called while
        `computing`.

        Args:
            rows: shape (n, d_model).

        Returns:
            Shape (n, vocabulary), the model's dtype.
        """

        def replace(_: nn.Module, __: Any, output: Any) -> Any:
            return with_first_tensor(output, rows[None])

        handle = self.layers[-1].register_forward_hook(replace)
        try:
            one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            logits: Tensor = self.module(input_ids=one, **self._no_cache).logits
        finally:
            handle.remove()
        return logits.reshape(-1, logits.shape[-1])

    @cached_property
    def _no_cache(self) -> dict[str, Any]:
        given = inspect.signature(self.module.forward).parameters
        takes = "use_cache" in given or any(p.kind is p.VAR_KEYWORD for p in given.values())
        return {"use_cache": False} if takes else {}


def first_tensor(output: Any) -> Tensor:
    """Return what a module returned, or the first of several things."""
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with its first tensor replaced."""
    return tensor if isinstance(output, Tensor) else (tensor, *output[1:])


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    declared = getattr(text, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == declared]
    if lists:
        # Of several lists of this length, the decoder's holds the most parameters.
        return max(lists, key=lambda found: sum(p.numel() for p in found.parameters()))
    raise PatchingError(
        f"Expected a model that holds its {declared} decoder layers in one list, got "
        f"`{type(model).__name__}`",
        hint="Pass a causal language model of transformers, as AutoModelForCausalLM returns it",
    )
