"""What the tests of training share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .small import save_all

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, its SAEs and prompts; nobody may change it."""
    return save_all(tmp_path_factory.mktemp("saved"))
