"""A decoder held still: in evaluation mode, without gradients, run as far as is needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        self._returned = 0

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
        try:
            for module in training:
                module.training = False
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
            self._returned = 0 if isinstance(output, Tensor) else len(output)
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

    def logits(self, rows: Tensor, *, columns: Tensor | None = None) -> Tensor:
        """Return what the model makes of residuals that leave its last layer.

        The model's own code does it, from the final norm to a soft cap of the logits: it is run
        over a single token, past all layers but the last, and what that returns is replaced. To be
        called while `computing`.

        Args:
            rows: shape (n, d_model).
            columns: tokens whose logits alone are needed; by default all.

        Returns:
            Shape (n, vocabulary) or (n, columns), the model's dtype.
        """

        def replace(_: nn.Module, __: Any, output: Any) -> Any:
            return with_first_tensor(output, rows[None])

        with ExitStack() as stack:
            stack.callback(self.layers[-1].register_forward_hook(replace).remove)
            stack.enter_context(_idle(self.layers[:-1], self._returned))
            stack.enter_context(_narrowed(self.module, columns))
            one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            logits: Tensor = self.module(input_ids=one, **self._no_cache).logits
        logits = logits.reshape(len(rows), -1)
        narrow = columns is None or logits.shape[-1] == len(columns)
        return logits if narrow else logits[:, columns]

    @cached_property
    def _no_cache(self) -> dict[str, Any]:
        given = inspect.signature(self.module.forward).parameters
        takes = "use_cache" in given or any(p.kind is p.VAR_KEYWORD for p in given.values())
        return {"use_cache": False} if takes else {}


@contextmanager
def _idle(layers: Sequence[nn.Module], returned: int) -> Iterator[None]:
    """Have layers hand on what they are given, in a tuple of so many things, or by itself."""

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        residual = args[0] if args else kwargs["hidden_states"]
        return (residual, *[None] * (returned - 1)) if returned else residual

    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["forward"] = hand_on
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward")
            if forward is not None:
                vars(layer)["forward"] = forward


@contextmanager
def _narrowed(module: nn.Module, columns: Tensor | None) -> Iterator[None]:
    """Have a model's head make some logits only, where it is a matrix and nothing more."""
    head = module.get_output_embeddings()  # type: ignore[operator]
    plain = type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks)  # noqa: SLF001 - the hooks of others have no public spelling
    if columns is None or not plain:
        yield
        return
    given: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> Any:
        given.append(args[0])
        return (args[0][..., :1, :], *args[1:])

    def narrow(_: nn.Module, __: Any, ___: Any) -> Tensor:
        bias = None if head.bias is None else head.bias[columns]
        return nn.functional.linear(given.pop(), head.weight[columns], bias)

    with ExitStack() as stack:
        stack.callback(head.register_forward_pre_hook(keep).remove)
        stack.callback(head.register_forward_hook(narrow).remove)
        yield


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
