from __future__ import annotations

from pathlib import Path

import pytest

from recipes.checkouts import Checkouts, make_checkouts


@pytest.fixture
def checkouts(tmp_path: Path) -> Checkouts:
    """A primary checkout and a secondary one."""
    return make_checkouts(tmp_path)
