"""What the source text itself promises: sizes, names, the one broad except."""

from __future__ import annotations

import ast
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "aegir_stream", ROOT / "adapters" / "aegir_adapters")
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FILE_LINES = 400
BODY_LINES = 60
# Spelled apart, so that this file does not hold what it forbids.
MACHINE_PATHS = tuple(f"/{folder}/" for folder in ("work", "root", "farm"))

each_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def caught_names(handler: ast.ExceptHandler) -> Iterator[str]:
    """Yield the last part of the name of each class that a handler catches."""
    if handler.type is None:
        yield "BaseException"
        return
    for node in ast.walk(handler.type):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def broad_handlers(tree: ast.AST) -> list[int]:
    """Return the lines of handlers that catch everything; `suppress(Exception)` is one as well."""
    broad = {"Exception", "BaseException"}
    handlers = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and broad & set(caught_names(node))
    ]
    suppressions = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and "suppress" in {getattr(node.func, "id", ""), getattr(node.func, "attr", "")}
        and broad & {getattr(argument, "id", "") for argument in node.args}
    ]
    return handlers + suppressions


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def declared_names(tree: ast.Module) -> list[str] | None:
    """Return `__all__`, if the module has one."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                assert node.value is not None
                names: list[str] = ast.literal_eval(node.value)
                return names
    return None


def bound_names(tree: ast.Module) -> set[str]:
    """Return the names that a module binds at its top, imports included."""
    names: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign():
                names.update(target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Import() | ast.ImportFrom():
                names.update(alias.asname or alias.name for alias in node.names)
    return names


def offered_names(tree: ast.Module, *, package: bool) -> set[str]:
    """Return the public functions and classes of a module; of a package, its re-exports too."""
    names = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    if package:
        names |= {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module != "__future__"
            for alias in node.names
        }
    return {name for name in names if not name.startswith("_")}


def tracked_files() -> list[Path]:
    """Return the files that git tracks or would add."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listing = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_the_recorder_holds_the_only_broad_except() -> None:
    """One boundary catches everything: the recorder's, between us and the training loop."""
    found = {
        path.relative_to(ROOT).as_posix(): len(lines)
        for path in MODULES
        if (lines := broad_handlers(parsed(path)))
    }
    assert found == {"aegir_stream/recorder.py": 1}


@each_module
def test_a_file_holds_one_concept(path: Path) -> None:
    """No module is longer than 400 lines."""
    assert len(path.read_text("utf-8").splitlines()) <= FILE_LINES


@each_module
def test_a_function_fits_a_screen(path: Path) -> None:
    """No function body is longer than 60 lines."""
    functions = (
        node
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    long = {node.name: body_lines(node) for node in functions if body_lines(node) > BODY_LINES}
    assert long == {}


@each_module
def test_dunder_all_is_exact(path: Path) -> None:
    """`__all__` names every public function and class once, and nothing that is not there.

    Ruff keeps it sorted. Constants and type variables are offered where the module says so.
    """
    tree = parsed(path)
    declared = declared_names(tree)
    if declared is None:
        return
    assert len(declared) == len(set(declared))
    assert offered_names(tree, package=path.name == "__init__.py") <= set(declared)
    assert set(declared) <= bound_names(tree)


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    """What is committed runs anywhere."""
    found = [
        f"{path.relative_to(ROOT)}: {folder}"
        for path in tracked_files()
        for folder in MACHINE_PATHS
        if folder in path.read_text("utf-8", errors="replace")
    ]
    assert found == []


def sleeping_calls(tree: ast.AST) -> list[int]:
    """Return the lines of calls that sleep for a time; `sleep(0)` only lets others run."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and "sleep" in {getattr(node.func, "id", ""), getattr(node.func, "attr", "")}
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_sleeps_to_wait(path: Path) -> None:
    """Tests wait for what they wait for; a clock of their own is moved, not waited on."""
    assert not sleeping_calls(parsed(path))


def test_every_listed_breakage_can_be_made() -> None:
    """Each line of `breakages.toml` stands once in its file, and its guard is there."""
    listed = tomllib.loads((ROOT / "tests" / "breakages.toml").read_text("utf-8"))["breakage"]
    for breakage in listed:
        text = (ROOT / breakage["file"]).read_text("utf-8")
        assert text.count(breakage["line"]) == 1, breakage
        path, _, test = breakage["noticed_by"].partition("::")
        assert f"def {test}" in (ROOT / path).read_text("utf-8"), breakage
