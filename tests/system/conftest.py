"""File systems of their own for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from system.mounts import Mirror, mirrored, small_tmpfs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with small_tmpfs(tmp_path) as directory:
        yield directory


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """A directory, and a mount of it that stands in for NFS."""
    with mirrored(tmp_path) as sides:
        yield sides
