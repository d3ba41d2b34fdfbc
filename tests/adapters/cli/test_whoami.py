from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adapters.worktree.repositories import environment, linked, locked, primary, worktree
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import Lease

WHOAMI = [sys.executable, "-m", "aegir_adapters.cli", "whoami"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def told(
    directory: Path, variables: Mapping[str, str] | None = None, *, code: int = 0
) -> dict[str, Any]:
    """Return what the command says in a directory, into a pipe."""
    done = subprocess.run(
        WHOAMI,
        cwd=directory,
        env=environment(variables),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, "")
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def shown(
    directory: Path, variables: Mapping[str, str] | None = None, *, columns: int = 80
) -> list[str]:
    """Return the lines that the command draws on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **(variables or {})}
    kept = {k: v for k, v in environment(plain).items() if k not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(WHOAMI, cwd=directory, env=kept, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    try:
        while data := os.read(ours, 1 << 16):
            output += data
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
        process.wait(60)
    return [line.rstrip() for line in ESCAPES.sub("", output.decode()).splitlines()]


def test_the_primary_is_told_with_its_defaults(tmp_path: Path) -> None:
    """Where nothing is set: the role detected, the documented directory and port."""
    found = told(primary(tmp_path))

    assert (found["role"], found["origin"], found["detected"]) == (
        "primary",
        "detected",
        "primary",
    )
    assert found["checkout"]["git_dir"] == str(tmp_path / "primary/.git")
    assert found["output_dir"]["path"] == "/raid/checkpoints/p5"
    assert found["output_dir"]["origin"] == "default"
    assert (found["gateway"]["port"], found["gateway"]["origin"]) == (8091, "default")
    assert (found["problems"], found["wrong"]) == ([], [])


def test_a_linked_worktree_is_told_with_the_others(tmp_path: Path) -> None:
    """From a subdirectory as well: its own git directory, the common one, all worktrees."""
    below = linked(tmp_path) / "below"
    below.mkdir()
    found = told(below)
    checkout = found["checkout"]

    assert found["role"] == "secondary"
    assert checkout["top_level"] == str(tmp_path / "linked")
    assert checkout["git_dir"] == str(tmp_path / "primary/.git/worktrees/linked")
    assert checkout["common_dir"] == str(tmp_path / "primary/.git")
    assert checkout["branch"] == "branch-of-linked"
    assert [(tree["path"], tree["role"]) for tree in checkout["worktrees"]] == [
        (str(tmp_path / "primary"), "primary"),
        (str(tmp_path / "linked"), "secondary"),
    ]


def test_variables_are_named_where_they_decide(tmp_path: Path) -> None:
    """Role, directory and port come from them; what is detected is told beside the role."""
    variables = {
        "AEGIR_WORKTREE_ROLE": "secondary",
        "AEGIR_P5_OUTPUT_DIR": "runs/mine",
        "AEGIR_GATEWAY_PORT": "0",
    }
    found = told(primary(tmp_path), variables)

    assert (found["role"], found["origin"], found["detected"]) == (
        "secondary",
        "AEGIR_WORKTREE_ROLE",
        "primary",
    )
    assert found["output_dir"]["path"] == str(tmp_path / "primary/runs/mine")
    assert found["output_dir"]["origin"] == "AEGIR_P5_OUTPUT_DIR"
    assert found["gateway"] == {"port": 0, "origin": "AEGIR_GATEWAY_PORT", "listener": None}


def test_who_holds_directory_and_port_is_told(tmp_path: Path) -> None:
    """The process that trains there, and the one that listens there."""
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as server, Lease.take(RunDirectory.at(run)):
        port = server.getsockname()[1]
        variables = {"AEGIR_P5_OUTPUT_DIR": str(run), "AEGIR_GATEWAY_PORT": str(port)}
        found = told(primary(tmp_path), variables)
        drawn = "\n".join(shown(tmp_path, variables))
    freed = told(tmp_path, variables)

    assert found["output_dir"]["held"]
    assert found["output_dir"]["holder"]["process"]["pid"] == os.getpid()
    assert found["gateway"]["listener"]["holder"]["process"]["pid"] == os.getpid()
    assert f"held by process {os.getpid()} on " in drawn
    assert f"in use by process {os.getpid()} on " in drawn
    assert (freed["output_dir"]["held"], freed["gateway"]["listener"]) == (False, None)
    assert freed["output_dir"]["holder"]["process"]["pid"] == os.getpid()


def test_outside_of_a_checkout_the_rest_is_told(tmp_path: Path) -> None:
    """There is no role, and that is no failure."""
    found = told(tmp_path, {"AEGIR_GATEWAY_PORT": "8092"})

    assert (found["role"], found["detected"], found["checkout"]) == (None, None, None)
    assert f"got `{tmp_path}`" in found["problems"][0]
    assert found["gateway"]["port"] == 8092
    assert any(
        re.fullmatch(r"role +none \(not inside a git checkout\)", line) for line in shown(tmp_path)
    )


def test_a_directory_that_was_removed_is_no_failure(tmp_path: Path) -> None:
    """Who stands in it is told so."""
    command = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *WHOAMI, "--json"]
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        command,
        cwd=tmp_path / "gone",
        env=environment({"AEGIR_P5_OUTPUT_DIR": "runs/mine"}),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["role"], found["output_dir"]["path"]) == (None, "runs/mine")


def test_variables_with_wrong_values_are_told_and_exit_with_2(tmp_path: Path) -> None:
    """No other role or port is put in their place; everything else is told."""
    variables = {"AEGIR_WORKTREE_ROLE": "secondry", "AEGIR_GATEWAY_PORT": "gateway"}
    found = told(primary(tmp_path), variables, code=2)

    assert (found["role"], found["origin"], found["detected"]) == (None, None, "primary")
    assert found["gateway"] is None
    assert [re.findall(r"AEGIR_\w+, got `\w+`", text) for text in found["wrong"]] == [
        ["AEGIR_WORKTREE_ROLE, got `secondry`"],
        ["AEGIR_GATEWAY_PORT, got `gateway`"],
    ]
    assert found["checkout"]["branch"] == "trunk"


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    """No line is cut or longer than the terminal; this checkout is marked among the worktrees."""
    tree = locked(tmp_path)
    lines = shown(tree)
    text = "".join(lines).replace(" ", "")

    assert max(map(len, lines)) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert lines[0] == "role            secondary (detected)"
    for path in ("primary/.git/worktrees/linked", "linked"):
        assert str(tmp_path / path).replace(" ", "") in text
    assert [line.split()[:2] for line in lines if "secondary" in line][1:] == [["*", "secondary"]]
    assert any("locked" in line for line in lines)


def test_odd_names_neither_break_the_table_nor_the_json(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, line breaks and escapes are shown as what they are."""
    odd = worktree(primary(tmp_path), tmp_path / os.fsdecode(b"\xe9\n\x1b[31m[red]") / "tree")

    assert os.fsencode(told(odd)["checkout"]["top_level"]) == os.fsencode(odd)
    assert r"\udce9\n\x1b[31m[red]" in "".join(shown(odd, columns=300))
