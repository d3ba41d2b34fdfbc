"""The documentation keeps up with the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from msgspec import Struct

from aegir_adapters import cli
from aegir_stream import events

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = (ROOT / "aegir_stream", ROOT / "adapters" / "aegir_adapters")
PAGES = [
    ROOT / "README.md",
    *(path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts),
]

FENCE = re.compile(r"^(?P<fence>`{3,})\w*\n(?P<code>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
FAULTS = {
    "torn last line while the writer lives",
    "writer killed in the middle of a write, then restarted",
    "disk full, quota, short write",
    "write or sync error, dead mount",
    "truncated, replaced or copied-over file, inode used again",
    "bit flip, garbage, NUL run, gigantic line",
    "checkpoint directory incomplete, or deleted while it is read",
    "two writers by mistake",
    "fork, spawn, pickle, signal, interpreter exit",
    "reader starts in the middle; stale or foreign cursor",
    "clock set back",
}
EXECUTED = re.compile(r"<!-- executed -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[$|]\s|bin/)aegir ([a-z]+)", re.MULTILINE)


def reference() -> str:
    """Return the text of all reference pages."""
    return "\n".join(path.read_text("utf-8") for path in sorted((DOCS / "reference").glob("*.md")))


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command of `aegir`, those of groups as `group command`."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        for child_name, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{name} {child_name}".strip())
        if name:
            yield name, command

    yield from walk(typer.main.get_command(cli.app), "")


def event_classes() -> list[str]:
    """Return the names of everything that can stand in a log or come out of a source."""
    return sorted(
        name
        for name, value in vars(events).items()
        if isinstance(value, type) and issubclass(value, Struct) and value is not Struct
    )


def error_classes() -> list[str]:
    """Return the names of the error classes of both packages."""
    modules = (path for package in PACKAGES for path in package.rglob("*.py"))
    trees = (ast.parse(path.read_text("utf-8")) for path in modules)
    return sorted(
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    )


@pytest.mark.parametrize(("name", "command"), [pytest.param(*c, id=c[0]) for c in commands()])
def test_every_command_is_explained(name: str, command: Any) -> None:
    """Each command and option has help, and stands in the command's section of the reference."""
    page = (DOCS / "reference" / "cli.md").read_text("utf-8")
    section = page.partition(f"\n## aegir {name}\n")[2].partition("\n## ")[0]
    assert command.help
    assert section
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name
        for option in filter(lambda text: text.startswith("-"), parameter.opts):
            assert f"`{option}`" in section


def test_the_reference_names_no_command_that_is_gone() -> None:
    """What the command line's page lists can be run."""
    page = (DOCS / "reference" / "cli.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `aegir ([a-z -]+)` \|", page, re.MULTILINE))
    assert listed == {name for name, command in commands() if not hasattr(command, "commands")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_use_commands_that_exist(path: Path) -> None:
    """Each `aegir COMMAND` in a fenced block of a page exists."""
    blocks = (match["code"] for match in FENCE.finditer(path.read_text("utf-8")))
    used = {command for block in blocks for command in COMMAND.findall(block)}
    assert used <= {name.partition(" ")[0] for name, _ in commands()}


@pytest.mark.parametrize("name", event_classes())
def test_every_event_is_in_the_reference(name: str) -> None:
    """Each kind of line and each delivery is named in the reference."""
    assert re.search(rf"\b{name}\b", reference())


@pytest.mark.parametrize("name", error_classes())
def test_every_error_is_in_the_reference(name: str) -> None:
    """Each error class is named in the reference, with the situation it stands for."""
    assert re.search(rf"^\| `{name}` \|", reference(), re.MULTILINE)


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if EXECUTED.search(path.read_text("utf-8"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_marked_examples_run(path: Path, tmp_path: Path) -> None:
    """The Python blocks of a page that are marked as executed run, one after the other."""
    program = "\n".join(EXECUTED.findall(path.read_text("utf-8")))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_decision_is_listed() -> None:
    """The index of decisions names each page of the folder once."""
    index = (DOCS / "decisions" / "index.md").read_text("utf-8")
    pages = sorted(path.stem for path in (DOCS / "decisions").glob("[0-9]*.md"))
    assert re.findall(r"^(\d{4}-[a-z0-9-]+)$", index, re.MULTILINE) == pages


def fault_rows() -> list[tuple[str, list[str]]]:
    """Return each fault of the table on durability, and the tests that are named beside it."""
    page = (DOCS / "explanation" / "durability.md").read_text("utf-8")
    table = page.partition("\n## Faults, and what happens\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [(cells[0], re.findall(r"`(\S+\.py::\w+)`", cells[-1])) for cells in rows[1:]]


@pytest.mark.parametrize(("fault", "shown_by"), [pytest.param(*r, id=r[0]) for r in fault_rows()])
def test_every_fault_has_a_test_that_shows_it(fault: str, shown_by: list[str]) -> None:
    """The table of faults names, for each, tests that exist."""
    assert shown_by, fault
    for name in shown_by:
        path, _, test = name.partition("::")
        tree = ast.parse((ROOT / "tests" / path).read_text("utf-8"))
        tests = {node.name for node in ast.walk(tree) if isinstance(node, FUNCTION)}
        assert test in tests, name


def test_the_table_of_faults_is_whole() -> None:
    """A table that lost its rows would need no tests."""
    assert {fault for fault, _ in fault_rows()} >= FAULTS
