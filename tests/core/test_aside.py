from __future__ import annotations

import threading

import anyio
import pytest

from aegir_stream.aside import aside, is_aside

pytestmark = pytest.mark.anyio


def test_a_block_is_aside_however_it_is_left() -> None:
    """Within it, and within blocks in it; not behind it, be it left by an exception."""

    def fail() -> None:
        with aside():
            with aside():
                assert is_aside()
            assert is_aside()
            raise KeyError

    assert not is_aside()
    with pytest.raises(KeyError):
        fail()
    assert not is_aside()


def test_other_threads_go_on() -> None:
    """What runs in another thread meanwhile is not aside."""
    seen: list[bool] = []
    with aside():
        thread = threading.Thread(target=lambda: seen.append(is_aside()))
        thread.start()
        thread.join()
    assert seen == [False]


async def test_other_tasks_go_on() -> None:
    """What another task does meanwhile is not aside, though it has the same thread."""
    entered, seen = anyio.Event(), anyio.Event()

    async def look() -> None:
        await entered.wait()
        assert not is_aside()
        seen.set()

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        with aside():
            entered.set()
            await seen.wait()
            assert is_aside()
