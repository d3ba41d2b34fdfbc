"""Forward passes that are no part of the training in whose midst they run.

Whoever borrows the policy between two steps, to look at it, runs it `aside`. Whoever watches the
policy on behalf of the training asks `is_aside` first, and looks away. So neither needs to know of
the other, and it does not matter which of them came first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["aside", "is_aside"]

_aside: ContextVar[bool] = ContextVar("aegir_aside", default=False)


@contextmanager
def aside() -> Iterator[None]:
    """Mark what runs in the block as no part of the training, for this thread or task only."""
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)


def is_aside() -> bool:
    """Tell whether what runs now is no part of the training."""
    return _aside.get()
