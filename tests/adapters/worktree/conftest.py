from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from adapters.worktree.repositories import CASES, environment
from aegir_adapters.worktree import Role


class Made(msgspec.Struct, frozen=True):
    """A repository that was made, and the directory in it that is asked about."""

    directory: Path
    role: Role | None


@pytest.fixture(scope="session", params=CASES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One repository of each kind. Tests leave it as it is, but for new directories."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    at = tmp_path_factory.mktemp("repository")
    return Made(request.param.make(at), request.param.role)


@pytest.fixture
def _own_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the library the environment in which the repositories were made."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
