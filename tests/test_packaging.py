"""What a user gets from pip."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

pytest.importorskip("hatchling", reason="building needs the dev extra")

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "aegir_stream", ROOT / "adapters" / "aegir_adapters")
FOREIGN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "foreign-adapters"
version = "1.0"

[tool.hatch.build.targets.wheel]
packages = ["adapters"]
"""
WHERE_FROM = """
import adapters, aegir_adapters, aegir_stream
print(adapters.OWNER)
print(aegir_stream.__file__)
print(aegir_adapters.__file__)
"""


def build_wheel(project: Path, into: Path) -> Path:
    """Build a wheel with the build backend at hand, without the network."""
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(into), str(project)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (wheel,) = into.glob("*.whl")
    return wheel


def install(environment: Path, wheels: Sequence[Path]) -> Path:
    """Make a virtual environment that holds these wheels; return its interpreter.

    Their dependencies are those at hand. A path file adds them behind the environment's own
    packages, and does not follow the path files in them, so no editable install is seen.
    """
    venv.create(environment, with_pip=False, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "at_hand.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    command = ["-m", "pip", "--python", str(environment / "bin" / "python"), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run(
        [sys.executable, *command, *options, *map(str, wheels)], check=True, capture_output=True
    )
    return environment / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_both_packages_and_what_is_not_code(wheel: Path) -> None:
    """Type markers, page templates and the licence are shipped; tests and `adapters/` are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in names if ".dist-info/" not in name}
    assert {"aegir_stream/py.typed", "aegir_adapters/py.typed"} <= shipped
    assert any(name.endswith(".html") for name in shipped)
    assert shipped == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_lives_beside_a_foreign_package_named_adapters(
    wheel: Path, tmp_path: Path
) -> None:
    """Installing us leaves another project's `adapters` package alone, in either order."""
    project = tmp_path / "foreign"
    (project / "adapters").mkdir(parents=True)
    (project / "adapters" / "__init__.py").write_text('OWNER = "foreign"\n', "utf-8")
    (project / "pyproject.toml").write_text(FOREIGN_PROJECT, "utf-8")
    foreign = build_wheel(project, tmp_path / "dist")
    for order, wheels in {"before": [foreign, wheel], "after": [wheel, foreign]}.items():
        environment = tmp_path / order
        python = install(environment, wheels)
        done = subprocess.run(
            [python, "-I", "-c", WHERE_FROM], check=True, capture_output=True, text=True
        )
        owner, *origins = done.stdout.splitlines()
        assert owner == "foreign"
        assert all(origin.startswith(str(environment)) for origin in origins)
