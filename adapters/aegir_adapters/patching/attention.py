"""A model's own attention function, with something put before it.

Transformers looks attention functions up by a name in the model's configuration. `tapped` gives
that configuration another name for a while, under which the model's own function is found behind a
tap: its scaling, soft caps, sinks and kernels stay what they are. A tap works in the thread that
set it; in any other the model's own function is called, as if nothing had happened.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["AttentionCall", "Recorder", "Tap", "tappable", "tapped"]

TAPPABLE: Final = ("eager", "sdpa")
"""Attention functions that take any mask; the others know only what their kernels offer."""

_PREFIX: Final = "aegir_patching_"
_thread = threading.local()

Attend = Callable[..., tuple[Tensor, Any]]
"""An attention function of transformers: (module, query, key, value, mask, **options)."""


class AttentionCall(NamedTuple):
    """One call of a model's attention function.

    Attributes:
        attend: the function.
        module: the attention module that calls it.
        query: shape (batch, heads, rows, d_head).
        key: shape (batch, key heads, rows, d_head).
        value: likewise.
        mask: what the model made for this function; `None` for plain causal attention.
        options: scaling, dropout, soft cap, and what else the module passes.
    """

    attend: Attend
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]

    def output(self) -> Tensor:
        """Return what the function makes of it. Shape (batch, rows, heads, d_head)."""
        arguments = (self.module, self.query, self.key, self.value, self.mask)
        return self.attend(*arguments, **self.options)[0]


Tap = Callable[[AttentionCall], Tensor]
"""Returns what should take the place of `AttentionCall.output`."""


class Recorder:
    """A tap that changes nothing and keeps every call.

    Attributes:
        calls: by attention module, what it was called with and the output.
    """

    def __init__(self) -> None:
        self.calls: dict[nn.Module, tuple[AttentionCall, Tensor]] = {}

    def __call__(self, call: AttentionCall) -> Tensor:
        """See `Tap`."""
        output = call.output()
        self.calls[call.module] = call, output
        return output


def tappable(model: nn.Module) -> bool:
    """Return whether every attention function that the model is configured with can be tapped."""
    return all(config._attn_implementation in TAPPABLE for config in _configs(model))  # noqa: SLF001 - the name has no public spelling


@contextmanager
def tapped(model: nn.Module, tap: Tap | None) -> Iterator[None]:
    """Put a tap before the model's attention functions; `None` puts nothing there.

    Not reentrant, and not thread-safe for the model: its configuration is changed meanwhile.
    """
    if tap is None:
        yield
        return
    _register()
    before = [(config, config._attn_implementation) for config in _configs(model)]  # noqa: SLF001 - likewise
    _thread.tap = tap
    try:
        for config, name in before:
            config._attn_implementation = f"{_PREFIX}{name}"  # noqa: SLF001 - likewise
        yield
    finally:
        _thread.tap = None
        for config, name in before:
            config._attn_implementation = name  # noqa: SLF001 - likewise


def _configs(model: nn.Module) -> list[Any]:
    """Return the distinct configurations of the model's modules, outermost first."""
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())


def _register() -> None:
    """Make the tapped names known to transformers; doing so again changes nothing."""
    for name in TAPPABLE:
        ALL_ATTENTION_FUNCTIONS.register(f"{_PREFIX}{name}", partial(_attention, name))
        ALL_MASK_ATTENTION_FUNCTIONS.register(
            f"{_PREFIX}{name}", ALL_MASK_ATTENTION_FUNCTIONS[name]
        )


def _attention(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Any]:
    attend = _own(name, module)
    tap: Tap | None = getattr(_thread, "tap", None)
    if tap is None:
        return attend(module, query, key, value, mask, **options)
    # The weights, which some functions return as well, are nobody's business here.
    return tap(AttentionCall(attend, module, query, key, value, mask, options)), None


def _own(name: str, module: nn.Module) -> Attend:
    """Return the function of this name; each modelling file has an eager one of its own."""
    if name == "eager":
        home = sys.modules[type(module).__module__]
        eager: Attend = home.eager_attention_forward
        return eager
    function: Attend = ALL_ATTENTION_FUNCTIONS[name]
    return function
