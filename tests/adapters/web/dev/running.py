"""`aegir ui` as a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Self

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

COMMAND = [sys.executable, "-m", "aegir_adapters.cli", "ui"]
LONGEST_S = 60


class RunningUI:
    """A process that serves pages, and what it says.

    Attributes:
        address: where it does, as it printed it.
        said: the line that it printed.
    """

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout
        assert process.stderr
        self.process = process
        self.said = ""
        self.address = ""
        self._out = BufferedByteReceiveStream(process.stdout)
        self._err = BufferedByteReceiveStream(process.stderr)

    @classmethod
    @asynccontextmanager
    async def started(cls, gateway: str, *options: str | Path) -> AsyncIterator[Self]:
        """Start it; interrupt it when the block ends, and see that it ends by that."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AEGIR_")}
        environment["AEGIR_GATEWAY_URL"] = gateway
        command = [*COMMAND, *map(str, options)]
        async with await anyio.open_process(
            command, stdout=PIPE, stderr=PIPE, env=environment, start_new_session=True
        ) as process:
            ui = cls(process)
            try:
                with anyio.fail_after(LONGEST_S):
                    ui.said = (await ui._out.receive_until(b"\n", 1000)).decode()
                ui.address = ui.said.partition(" ")[0]
                yield ui
            finally:
                if process.returncode is None:
                    await ui.interrupt()

    async def interrupt(self) -> int:
        """Press Ctrl-C, which a terminal sends to a group of processes; return the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        with anyio.fail_after(LONGEST_S):
            return await self.process.wait()

    async def rest(self) -> str:
        """Return what it says on standard error until all its processes have ended."""
        said = self._err.buffer
        with anyio.fail_after(LONGEST_S):
            async for part in self._err:
                said += part
        return said.decode()

    async def tells(self, text: str) -> str:
        """Return what it says on standard error until it says `text`, and the rest of that line."""
        with anyio.fail_after(LONGEST_S):
            before = await self._err.receive_until(text.encode(), 100_000)
            return (before + await self._err.receive_until(b"\n", 10_000)).decode()
