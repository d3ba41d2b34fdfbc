"""Other processes that a test needs: functions run apart, and followers that say what they read."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from system.following import Heard

TESTS = Path(__file__).parents[1]
PATIENCE_S = 60.0
"""How long anything is waited for before the test fails; far more than it takes."""


def command(function: Callable[..., object], *arguments: str | Path) -> list[str]:
    """Return a command that calls a function of a module of this folder with texts."""
    module = f"system.{function.__module__.rpartition('.')[2]}"
    program = f"import sys; from {module} import {function.__name__} as f; f(*sys.argv[1:])"
    return [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]


def start(
    function: Callable[..., object], *arguments: str | Path, **options: int | None
) -> subprocess.Popen[bytes]:
    """Start a function in a process of its own, in the folder of the tests."""
    return subprocess.Popen(command(function, *arguments), cwd=TESTS, env=os.environ, **options)  # type: ignore[call-overload,no-any-return]


def run_apart(function: Callable[..., object], *arguments: str | Path) -> bytes:
    """Call a function in a process of its own and return what it prints; it must succeed."""
    done = subprocess.run(
        command(function, *arguments),
        cwd=TESTS,
        check=False,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class Listener:
    """A process that prints lines, and what it has printed so far.

    Attributes:
        lines: every line without its newline, oldest first.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.lines: list[bytes] = []
        self.process = process
        self._changed = threading.Condition()
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def wait_for_lines(self, count: int) -> None:
        """Return when so many lines were printed."""
        self.wait_until(lambda: len(self.lines) >= count)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when what was printed fulfils a condition."""
        with self._changed:
            met = self._changed.wait_for(condition, PATIENCE_S)
        assert met, f"{len(self.lines)} lines, the last: {self.lines[-3:]}"

    def end(self) -> list[bytes]:
        """Return all that it prints, when it has ended by itself."""
        assert self.process.wait(PATIENCE_S) == 0
        self._listening.join(PATIENCE_S)
        return self.lines

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._listening.join()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    self.lines.append(line.rstrip(b"\n"))
                    self._changed.notify_all()


class Follower(Listener):
    """A process that follows a stream (`system.following`)."""

    def heard(self) -> list[Heard]:
        """Return everything that it has said, when it has ended by itself."""
        return [msgspec.json.decode(line, type=Heard) for line in self.end()]


@contextlib.contextmanager
def following(run: Path, stream: str = "sae_features", *, writers: int = 1) -> Iterator[Follower]:
    """Follow a run in a process of its own, from its first record until all have finished it."""
    program = [sys.executable, "-W", "error", "-m", "system.following"]
    program += [str(run), stream, str(writers)]
    follower = Follower(subprocess.Popen(program, cwd=TESTS, stdout=subprocess.PIPE))
    try:
        # Once it has looked it is there for good.
        follower.wait_for_lines(1)
        yield follower
    finally:
        follower.stop()
