from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegir_stream.layout import RunDirectory
from aegir_stream.lease import lease_of

PATIENCE_S = 60.0
GUARD = (sys.executable, "-m", "aegir_adapters.cli", "guard")


@pytest.fixture(autouse=True)
def _primary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command here runs as in a primary checkout."""
    for name in ("AEGIR_P5_OUTPUT_DIR", "AEGIR_GATEWAY_PORT", "ALLOW_SECONDARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AEGIR_WORKTREE_ROLE", "primary")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port


def guarded(*options: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python program under guard."""
    return subprocess.run(
        [*GUARD, *options, "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


TELL = "import json, os; print(json.dumps([os.environ.get(n) for n in ({!r}, {!r})]))"


def test_the_command_finds_what_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is absolute; a variable that was set wins over the option."""
    program = TELL.format("AEGIR_P5_OUTPUT_DIR", "AEGIR_GATEWAY_PORT")
    told = guarded("--dir", "run", "--port", "18091", program=program)
    assert json.loads(told.stdout) == [str(tmp_path / "run"), "18091"], told.stderr

    monkeypatch.setenv("MY_DIR", "elsewhere")
    monkeypatch.setenv("MY_PORT", "18092")
    variables = ("--dir-variable", "MY_DIR", "--port-variable", "MY_PORT")
    program = TELL.format("MY_DIR", "MY_PORT")
    told = guarded("--dir", "run", "--port", "18091", *variables, program=program)
    assert json.loads(told.stdout) == [str(tmp_path / "elsewhere"), "18092"], told.stderr


def test_the_command_holds_the_lease_until_it_ends(tmp_path: Path) -> None:
    """It may take it itself, and it ends with it; the guard has become the command."""
    program = (
        "from aegir_stream.layout import RunDirectory; from aegir_stream.lease import *;"
        "import os; run = RunDirectory.at('run'); Lease.take(run).release();"
        "print(lease_of(run).held, lease_of(run).holder.process.pid == os.getpid())"
    )
    told = guarded("--dir", "run", program=program)

    assert told.stdout == "True True\n", told.stderr
    assert not lease_of(RunDirectory.at(tmp_path / "run")).held


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    """Whatever runs it sees no difference."""
    assert guarded("--dir", "run", program="raise SystemExit(7)").returncode == 7


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    """As a shell does, with exit code 127."""
    command = [*GUARD, "--", "no-such-command"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 127
    assert "no-such-command" in done.stderr


def test_a_directory_that_is_held_is_refused(tmp_path: Path) -> None:
    """With exit code 2, the holder and the variable; the command is not started."""
    wait = "import sys; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [*GUARD, "--dir", "run", "--", sys.executable, "-c", wait],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        program = "open('started', 'w')"
        refused = guarded("--dir", "run", "--dir-variable", "MY_DIR", program=program)
        holder.communicate(timeout=PATIENCE_S)

    assert refused.returncode == 2
    for part in (f"process {holder.pid} on", str(tmp_path), "MY_DIR"):
        assert part in refused.stderr
    assert not (tmp_path / "started").exists()


def test_a_port_that_is_taken_is_refused(taken_port: int, tmp_path: Path) -> None:
    """With exit code 2, the holder and the variable; the command is not started."""
    program = "open('started', 'w')"
    port = str(taken_port)
    refused = guarded("--port", port, "--port-variable", "MY_PORT", program=program)

    assert refused.returncode == 2
    assert f"process {os.getpid()}" in refused.stderr
    assert "MY_PORT" in refused.stderr
    assert not (tmp_path / "started").exists()


def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, with its value."""
    monkeypatch.setenv("AEGIR_GATEWAY_PORT", "http")
    refused = guarded("--port", "8091")

    assert refused.returncode == 1
    assert "in AEGIR_GATEWAY_PORT, got `http`" in refused.stderr
