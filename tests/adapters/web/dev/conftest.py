from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from adapters.web.dev.running import RunningUI

ROOT = Path(__file__).parents[4]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, as far as the pages are made of it."""
    top = tmp_path / "checkout"
    for package in ("adapters/aegir_adapters", "aegir_stream"):
        shutil.copytree(ROOT / package, top / package, ignore=shutil.ignore_patterns("__pycache__"))
    return top


@pytest.fixture
def start_ui() -> Callable[..., AbstractAsyncContextManager[RunningUI]]:
    """Start `aegir ui`; it is interrupted when the block ends, and has to end itself then."""

    @asynccontextmanager
    async def started(gateway: str, *options: str | Path) -> AsyncIterator[RunningUI]:
        async with RunningUI.started(gateway, *options) as ui:
            yield ui

    return started
