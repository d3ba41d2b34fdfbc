from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aegir_adapters
from aegir_adapters.web.dev import sources_of
from aegir_stream.errors import OptionError


def test_the_checkout_around_the_current_directory(checkout: Path) -> None:
    """Wherever one stands in a checkout, its own code makes the pages."""
    for directory in (checkout, checkout / "adapters" / "aegir_adapters" / "web"):
        sources = sources_of(None, directory=directory)

        assert sources.web == checkout / "adapters/aegir_adapters/web"
        assert sources.roots == (checkout / "adapters", checkout)
        assert all(package.is_dir() for package in sources.packages)


def test_a_checkout_that_is_named(checkout: Path, tmp_path: Path) -> None:
    """It goes before the one around the current directory."""
    assert sources_of(checkout, directory=Path(__file__).parent).roots[1] == checkout


def test_outside_of_a_checkout(tmp_path: Path) -> None:
    """What is installed makes the pages, and is found as it was."""
    sources = sources_of(None, directory=tmp_path)

    assert sources.roots == ()
    assert sources.web == Path(aegir_adapters.__path__[0]) / "web"


def test_a_gateway_needs_none_of_this() -> None:
    """What only the development server needs is not imported by those who serve a run."""
    names = "{'httpx', 'aegir_adapters.web.dev'}"
    program = f"import sys, aegir_adapters.web; print({names} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)

    assert done.stdout == "set()\n"


@pytest.mark.parametrize("part", ["", "adapters/aegir_adapters/web/dev"])
def test_what_cannot_serve_its_pages(checkout: Path, tmp_path: Path, part: str) -> None:
    """A directory without the project, or with one of before this server, is refused by name."""
    top = checkout if part else tmp_path
    if part:
        (checkout / part).rename(tmp_path / "dev")
    with pytest.raises(OptionError, match="--checkout") as caught:
        sources_of(top, directory=tmp_path)

    assert f"`{top}`" in str(caught.value)
