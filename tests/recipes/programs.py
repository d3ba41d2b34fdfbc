"""Recipes that go on beside the test, and what they need to be quick."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from recipes.checkouts import PATIENCE_S, environment
from system.processes import Listener


def tiny_preset(directory: Path, *, steps: int = 2) -> Path:
    """Return a preset like `tiny` that takes seconds."""
    text = (resources.files("aegir_adapters.train") / "presets/tiny.toml").read_text()
    function = 'function = "aegir_adapters.demo.preparation:prepare"\n'
    sizes = {
        function: f"""{function}
[prepare.settings]
fine_tune_steps = 20
rollouts = 64
sae_steps = 20
""",
        "\nsteps = 80": f"\nsteps = {steps}",
        "checkpoint_every_n_steps = 20": "checkpoint_every_n_steps = 2",
    }
    for known, small in sizes.items():
        assert known in text
        text = text.replace(known, small)
    path = directory / "small.toml"
    path.write_text(text)
    return path


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    """Tell whether anybody accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def started(
    directory: Path, *arguments: str, overrides: Mapping[str, str], says: str
) -> Iterator[Listener]:
    """Run a recipe beside the test, from when it has said something until Ctrl-C ends it."""
    process = subprocess.Popen(
        ["just", *arguments],
        cwd=directory,
        env=environment(overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    listener = Listener(process)
    try:
        listener.wait_until(lambda: any(says.encode() in line for line in listener.lines))
        yield listener
    finally:
        if process.poll() is None:
            # As in a terminal: the recipe and what it runs, a session of their own, receive it.
            os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE_S)
        listener.stop()
