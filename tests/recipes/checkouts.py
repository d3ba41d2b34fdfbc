"""Two checkouts of one repository that hold the recipes, and programs started in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
FILES = ("Justfile", "Makefile", "devenv.nix", "bin/detect-worktree-role.sh")
PATIENCE_S = 120.0
"""How long a program may take before the test fails; far more than it takes."""

OURS = ("AEGIR_", "ALLOW_SECONDARY", "GIT_")


class Checkouts(msgspec.Struct, frozen=True):
    """A primary checkout and a linked worktree of the same repository."""

    primary: Path
    secondary: Path


def make_checkouts(directory: Path) -> Checkouts:
    """Make a repository with the project's recipes, and a worktree beside it.

    Both use the environment that runs the tests.
    """
    both = Checkouts(directory / "primary", directory / "secondary")
    for name in FILES:
        (both.primary / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, both.primary / name)
    for arguments in (
        ["init", "--quiet", "--initial-branch=trunk"],
        ["add", "--all"],
        ["-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "--quiet", "-m", "recipes"],
        ["worktree", "add", "--quiet", "-b", "ui", str(both.secondary)],
    ):
        result = run(["git", *arguments], both.primary)
        assert result.returncode == 0, result.stderr
    for checkout in (both.primary, both.secondary):
        (checkout / ".venv").symlink_to(sys.prefix)
    return both


def environment(overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would decide for the recipes."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    return {
        **inherited,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}",
        **(overrides or {}),
    }


def run(
    command: list[str], directory: Path, overrides: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in a directory to its end."""
    return subprocess.run(
        command,
        cwd=directory,
        env=environment(overrides),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def just(
    directory: Path, *arguments: str, overrides: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a recipe in a checkout."""
    return run(["just", *arguments], directory, overrides)
