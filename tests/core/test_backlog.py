from __future__ import annotations

import threading

import pytest

from aegir_stream.backlog import Backlog, Command, Overflow
from aegir_stream.batch import Events
from aegir_stream.testing import make_record


async def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_nothing_gets_behind_the_last_command(overflow: Overflow) -> None:
    """Once it is queued, batches and commands are refused, though there is room."""
    backlog = Backlog(limit_bytes=1 << 20, overflow=overflow, block_s=20.0)
    batch = Events("sae_features", (make_record(),))
    last = Command(nothing, threading.Event(), last=True)

    assert backlog.offer(batch) == []
    assert backlog.command(last)
    assert backlog.offer(batch) == [batch]
    assert not backlog.command(last)
    assert [backlog.take() for _ in range(3)] == [batch, last, None]
