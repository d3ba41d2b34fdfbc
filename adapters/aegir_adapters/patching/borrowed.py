"""A model that somebody trains, run between two of its steps and given back as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from aegir_stream.aside import aside

__all__ = ["borrowed"]

_SMALL_BYTES: Final = 1 << 20
"""Buffers that a forward changes are frequencies and counters. Larger ones are masks, or the
weights of a quantised model, of which there should be no second copy."""

_TABLES: Final = (
    "_buffers",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""What a module keeps in dictionaries, and a forward or whoever watches one may change."""


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """Run a model aside (`aegir_stream.aside`), whoever trains it; leave no trace of that.

    In the block it computes in the type of its weights: the autocast of a trainer, which
    `accelerate` puts around `forward`, is off, as it is for a model that was saved and loaded.
    Nothing is compiled, and nothing that was compiled is used, since that would pass by all hooks.

    Afterwards the generators of random numbers (of torch, Python and numpy), the modules' modes and
    other attributes, their hooks and their small buffers are what they were, even if the block was
    left by an exception. Parameters and gradients are not copied: the block must leave them alone.
    """
    with ExitStack() as stack:
        stack.enter_context(aside())
        if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled, and it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_generators_kept(module))
        stack.enter_context(_modules_kept(module))
        for kind in {parameter.device.type for parameter in module.parameters()}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if "_original_forward" in vars(module):  # accelerate's name for what it wrapped
            module.forward = vars(module)["_original_forward"]
        yield


@contextmanager
def _generators_kept(module: nn.Module) -> Iterator[None]:
    """Keep every generator that a forward could draw from."""
    numpy: Any = sys.modules.get("numpy")
    of_python = random.getstate()
    of_numpy = numpy.random.get_state() if numpy else None
    with ExitStack() as stack:
        devices = {p.device for p in module.parameters()} - {torch.device("cpu")}
        for device in devices:
            forked = torch.random.fork_rng([device], device_type=device.type)
            stack.enter_context(forked)
        stack.enter_context(torch.random.fork_rng([]))  # the CPU's
        try:
            yield
        finally:
            random.setstate(of_python)
            if numpy:
                numpy.random.set_state(of_numpy)


@contextmanager
def _modules_kept(module: nn.Module) -> Iterator[None]:
    """Keep what modules hold beside parameters: some positional embeddings remember lengths."""
    modules = list(module.modules())
    attributes = [dict(vars(each)) for each in modules]
    tables = [
        (vars(each)[name], dict(vars(each)[name]))
        for each in modules
        for name in _TABLES
        if name in vars(each)
    ]
    buffers = [
        (buffer, buffer._version, buffer.clone())  # noqa: SLF001 - the count has no public name
        for each in modules
        for buffer in each.buffers(recurse=False)
        if buffer.nbytes <= _SMALL_BYTES
    ]
    try:
        yield
    finally:
        for table, before in tables:
            table.clear()
            table.update(before)
        for each, held in zip(modules, attributes, strict=True):
            for new in vars(each).keys() - held.keys():
                del vars(each)[new]
            vars(each).update(held)
        for buffer, version, kept in buffers:
            _restore(buffer, version, kept)


def _restore(buffer: Tensor, version: int, kept: Tensor) -> None:
    if buffer._version != version:  # noqa: SLF001 - likewise
        with torch.no_grad():
            buffer.copy_(kept)
