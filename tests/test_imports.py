"""Who may import whom, and at what cost."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "aegir_stream"
HEAVY = {
    "aegir_adapters",
    "aiofiles",
    "bokeh",
    "click",
    "datasets",
    "fastapi",
    "jinja2",
    "numpy",
    "pandas",
    "pyarrow",
    "rich",
    "safetensors",
    "starlette",
    "torch",
    "transformers",
    "trl",
    "typer",
    "uvicorn",
    "yaml",
}
MODULE_BUDGET = 130
ALLOWED = {"aegir_stream", "anyio", "msgspec"}
# The public test kit is for people who test, and they have these.
ALLOWED_IN_TESTING = ALLOWED | {"hypothesis", "pytest"}

LOADED_BY = """
import importlib, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def core_modules() -> list[str]:
    """Return the dotted name of every module of the core."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in CORE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def third_party_imports(path: Path) -> set[str]:
    """Return the top-level names beyond the standard library that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


def loaded_by(*modules: str) -> set[str]:
    """Return what importing `modules` adds to `sys.modules` of a fresh interpreter."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", LOADED_BY, *modules],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return set(done.stdout.split())


def test_every_core_module_imports_without_anything_heavy() -> None:
    """Importing all of the core loads none of the libraries that adapters exist for."""
    loaded = loaded_by(*core_modules())
    assert "aegir_stream.events" in loaded
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()


def test_the_core_imports_msgspec_and_anyio_only() -> None:
    """No core module names another library, neither lazily nor for its types."""
    found = {
        path.relative_to(ROOT).as_posix(): foreign
        for path in CORE.rglob("*.py")
        if (
            foreign := third_party_imports(path)
            - (ALLOWED_IN_TESTING if CORE / "testing" in path.parents else ALLOWED)
        )
    }
    assert found == {}


def test_importing_the_package_is_cheap() -> None:
    """`import aegir_stream` loads at most 130 modules beyond a bare interpreter's."""
    loaded = loaded_by("aegir_stream")
    assert len(loaded) <= MODULE_BUDGET, sorted(loaded)


def test_importing_the_adapters_package_loads_nothing() -> None:
    """`import aegir_adapters` decides on no extra: it loads itself alone."""
    assert loaded_by("aegir_adapters") == {"aegir_adapters"}


def test_adapters_is_a_source_root_and_no_package() -> None:
    """A package named `adapters` would overwrite another project's in the user's environment."""
    assert not (ROOT / "adapters" / "__init__.py").exists()


def test_import_contracts_hold() -> None:
    """The directions between the rooms are those declared in pyproject.toml."""
    pytest.importorskip("importlinter", reason="import-linter comes with the dev extra")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
