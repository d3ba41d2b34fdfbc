from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aegir_stream.layout import RunDirectory
from core.runs import Life

AEGIR = [sys.executable, "-m", "aegir_adapters.cli"]


def aegir(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*AEGIR, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def on_a_terminal(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as if its output were a terminal of 80 columns."""
    program = (
        "import sys; sys.stdout.isatty = lambda: True\n"
        f"sys.argv = ['aegir', *{list(map(str, arguments))!r}]\n"
        "from aegir_adapters.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "80"},
    )


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run with a checkpoint, and an attempt that was killed in a line."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    life.save()
    life.record_step()
    life.kill(torn=b'{"step":3,"tok')
    life.resume("checkpoint-1")
    life.record_step()
    return life


def damage(life: Life) -> None:
    """Change a digit of the second record."""
    closed = life.run.history()[0].path
    content = closed.read_bytes()
    closed.write_bytes(content.replace(b'"token_index":1', b'"token_index":7', 1))


def test_a_run_without_damage_passes(life: Life) -> None:
    """Exit code 0, a line of figures, and what a kill left is listed as such."""
    shown = on_a_terminal("verify", life.run.root)
    piped = aegir("verify", life.run.root)

    assert (shown.returncode, piped.returncode) == (0, 0)
    size = sum(path.stat().st_size for path in [*life.run.history_path.iterdir()])
    size += life.run.live("sae_features").stat().st_size
    summary = f"3 files, 9 records, {size} bytes checked: nothing is damaged, 1 interrupted"
    assert shown.stdout.splitlines()[-1] == summary
    assert piped.stderr == summary + "\n"
    [row] = map(json.loads, piped.stdout.splitlines())
    assert (row["kind"], row["length"]) == ("interrupted", 15)


def test_damage_is_listed_with_its_place(life: Life) -> None:
    """Exit code 1, and each range with file, offset, length and reason."""
    damage(life)
    shown = on_a_terminal("verify", life.run.root)
    listed = aegir("verify", life.run.root, "--json")

    assert (shown.returncode, listed.returncode) == (1, 1)
    row = json.loads(listed.stdout.splitlines()[0])
    assert row["path"] == str(life.run.history()[0].path)
    assert (row["kind"], row["records"]) == ("damaged", 3)
    assert row["reason"] == "these bytes do not agree with their checksum"
    for column in ("file", "offset", "bytes", "records", "kind"):
        assert column in shown.stdout
    assert "…" not in shown.stdout
    summary = "6 records, "
    assert summary in shown.stdout.splitlines()[-1]
    assert shown.stdout.splitlines()[-1].endswith("1 range damaged, 1 interrupted")


def test_tail_and_replay_leave_out_what_is_damaged(life: Life) -> None:
    """With `--committed` a record counts only if the checksum behind it agrees."""
    damage(life)
    tail = ("tail", life.run.root, "--from", "start", "--no-follow")
    live, committed = aegir(*tail), aegir(*tail, "--committed", "--verbose")

    assert len(live.stdout.splitlines()) == 6
    assert len(committed.stdout.splitlines()) == 3
    assert "these bytes do not agree with their checksum" in committed.stderr
    replay = ("replay", life.run.root, "--view", "heatmap")
    assert len(aegir(*replay).stdout.splitlines()) == 2
    assert len(aegir(*replay, "--committed").stdout.splitlines()) == 1


def test_a_directory_without_a_log_is_named(tmp_path: Path) -> None:
    """Nothing to check is an error, not a success."""
    done = aegir("verify", tmp_path)

    assert done.returncode == 1
    assert "holds no log" in done.stderr
