"""What a forked child must let go of.

A child inherits descriptors, and with them the locks of files that it never writes, and locks that
threads which it does not have were holding.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_forked_child"]

T = TypeVar("T")

_inherited: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def in_forked_child(thing: T, let_go: Callable[[T], None]) -> None:
    """Have every forked child call `let_go(thing)` before all else, as long as `thing` lives."""
    _register()
    _inherited[thing] = let_go


@functools.cache
def _register() -> None:
    os.register_at_fork(after_in_child=_let_go_of_all)


def _let_go_of_all() -> None:
    for thing, let_go in list(_inherited.items()):
        let_go(thing)
