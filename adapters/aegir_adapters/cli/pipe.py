"""Printing into a pipe whose reader may leave early."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_pipe"]


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """End quietly when the reader has what it wanted: `aegir tail RUN | head` is no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain about the unflushed rest when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
