"""The processes of a soak: what they say, and what they need."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from core.resident import memory_mib
from soak.oracle import SoakError

__all__ = ["PATIENCE_S", "Process"]

T = TypeVar("T")

TESTS = Path(__file__).parents[1]
PATIENCE_S = 60.0


class Process(Generic[T]):
    """A Python process that says things of one kind, one line of JSON each.

    Args:
        module: what it runs.
        arguments: its arguments.
        kind: what it says.

    Attributes:
        name: what it is called in messages.
        ended: whether it has said its last.
    """

    def __init__(self, module: str, *arguments: str | Path, kind: type[T]) -> None:
        self.name = " ".join([module, *map(str, arguments[:1])])
        self._decoder = msgspec.json.Decoder(kind)
        self._rest = b""
        self.ended = False
        command = [sys.executable, "-m", module, *map(str, arguments)]
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        self._process = subprocess.Popen(
            command,
            cwd=TESTS,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
        )

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def hear(self, *, wait_s: float = PATIENCE_S) -> list[T]:
        """Return what it says next; nothing once it has ended, or if it is silent for so long."""
        ready, _, _ = select.select([self], [], [], max(0.0, wait_s))
        data = os.read(self.fileno(), 1 << 18) if ready else b""
        self.ended = bool(ready) and not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [self._decoder.decode(line) for line in lines]

    def end(self, *, patience_s: float = PATIENCE_S) -> tuple[list[T], int]:
        """Return what it says to its end, and its exit code.

        Raises:
            SoakError: it does not end.
        """
        said: list[T] = []
        deadline = time.monotonic() + patience_s
        while not self.ended:
            said += self.hear(wait_s=deadline - time.monotonic())
            if time.monotonic() > deadline:
                raise SoakError(f"{self.name} does not end")
        return said, self._process.wait()

    def kill(self) -> None:
        """Kill it as nothing else can; what it said before can still be heard."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it and forget it."""
        self.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def resident_mib(self) -> float:
        """Return its resident memory."""
        return memory_mib("VmRSS", str(self._process.pid))

    def descriptors(self) -> int:
        """Return how many files it has open."""
        return len([*Path(f"/proc/{self._process.pid}/fd").iterdir()])
