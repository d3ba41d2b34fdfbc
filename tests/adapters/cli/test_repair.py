from __future__ import annotations

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


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run with a damaged checkpoint."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    life.save()
    life.record_step()
    closed = life.run.history()[0].path
    content = closed.read_bytes()
    closed.write_bytes(content.replace(b'"token_index":1', b'"token_index":7', 1))
    return life


def test_a_repaired_copy_passes(life: Life, tmp_path: Path) -> None:
    """The damaged run fails, its copy passes, and the run still fails: it was left alone."""
    clean = tmp_path / "clean"
    before = aegir("verify", life.run.root)

    done = aegir("repair", life.run.root, "--to", clean)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"2 files with 3 records copied to {clean}, 1 of them mended\n"
    assert aegir("verify", clean).returncode == 0
    after = aegir("verify", life.run.root)
    assert (after.returncode, after.stdout) == (before.returncode, before.stdout) != (0, "")


@pytest.mark.parametrize(
    ("to", "named"), [("", "outside of the run"), ("clean", "outside of the run"), ("..", "empty")]
)
def test_a_place_that_cannot_be_used_is_named(life: Life, to: str, named: str) -> None:
    """One line says what is wrong with it and what to do."""
    done = aegir("repair", life.run.root, "--to", life.run.root / to)

    assert done.returncode == 1
    assert done.stderr.startswith("aegir: ")
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr


def test_the_place_has_to_be_named(life: Life) -> None:
    """There is no default for where a copy goes."""
    assert aegir("repair", life.run.root).returncode == 2
