from __future__ import annotations

import anyio
import pytest

from aegir_adapters.web.sharing import WhileWanted

pytestmark = pytest.mark.anyio


class Worker:
    """Works until it is told to stop, and remembers that it was."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.ended = anyio.Event()

    async def work(self) -> None:
        """Work until cancelled."""
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()


async def test_the_first_begins_the_work_and_the_last_ends_it() -> None:
    """Users at the same time share one worker; the next one afterwards gets a fresh one."""
    shared = WhileWanted(Worker, Worker.work)

    async with shared.use() as first:
        async with shared.use() as second:
            await first.begun.wait()
        outlived_one_user = not first.ended.is_set()
    assert outlived_one_user
    with anyio.fail_after(5):
        await first.ended.wait()
    async with shared.use() as third:
        assert first is second is not third


async def test_a_failure_of_the_worker_reaches_its_users() -> None:
    """A failure interrupts whatever its users wait for, and the next one gets a fresh worker."""

    async def fail(worker: Worker) -> None:
        worker.begun.set()
        raise RuntimeError("disk on fire")

    shared = WhileWanted(Worker, fail)
    with anyio.fail_after(5):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="disk on fire"):
                async with shared.use() as worker:
                    await worker.ended.wait()
