"""A sweep that nobody waits for any more stops at the next layer, in the midst of a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

from torch import nn

__all__ = ["Interrupted", "interruptible"]


class Interrupted(Exception):  # noqa: N818 - no error: it was asked for
    """The computing was broken off because it was asked to be."""


@contextmanager
def interruptible(layers: Sequence[nn.Module], interrupt: Event | None) -> Iterator[None]:
    """Raise before the next layer once an event is set, from whatever thread.

    Args:
        layers: the model's decoder layers.
        interrupt: the event; `None` if nobody will ask.

    Raises:
        Interrupted: it was set.
    """

    def look(*_: Any) -> None:
        if interrupt is not None and interrupt.is_set():
            raise Interrupted

    look()
    with ExitStack() as hooked:
        for layer in layers if interrupt is not None else ():
            hooked.callback(layer.register_forward_pre_hook(look).remove)
        yield
