from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ranks import Ranks


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    """Two gloo ranks that serve all tests of a module."""
    with Ranks(2) as ranks:
        yield ranks
