from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from recipes.checkouts import Checkouts, run

pytestmark = pytest.mark.skipif(
    shutil.which("nix-instantiate") is None, reason="needs nix-instantiate (Debian: nix-bin)"
)

# What devenv hands to the file, as far as the file asks for it.
EXPRESSION = """
let
  lib = {
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    optionalAttrs = condition: attributes: if condition then attributes else { };
    optionalString = condition: text: if condition then text else "";
  };
  names = [ "curl" "git" "gnumake" "jq" "just" "python311" "qdrant" ];
  pkgs = builtins.listToAttrs (map (name: { inherit name; value = "/packages/${name}"; }) names);
  config.devenv = { root = "%s"; state = "/state"; };
in
import ./devenv.nix { inherit lib pkgs config; }
"""


def evaluate(directory: Path, overrides: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what devenv.nix says in a checkout."""
    command = ["nix-instantiate", "--eval", "--strict", "--json", "-E", EXPRESSION % directory]
    done = run(command, directory, overrides)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


def running(module: Mapping[str, Any]) -> set[str]:
    """Return the names of all services and processes that would be started."""
    enabled = {name for name, service in module["services"].items() if service["enable"]}
    return enabled | set(module["processes"])


EVERYTHING = {"postgres", "qdrant", "gateway", "ui-dev"}


def test_the_primary_starts_the_services_and_a_secondary_none(checkouts: Checkouts) -> None:
    """The role is detected where nothing sets it."""
    primary, secondary = evaluate(checkouts.primary), evaluate(checkouts.secondary)

    assert running(primary) == EVERYTHING
    assert running(secondary) == set()
    assert primary["env"]["AEGIR_WORKTREE_ROLE"] == "primary"
    assert secondary["env"]["AEGIR_WORKTREE_ROLE"] == "secondary"
    assert "just ui-dev" in secondary["enterShell"]


def test_the_variable_overrides_what_is_detected(checkouts: Checkouts) -> None:
    """Both ways; an empty value counts as unset."""
    variable = "AEGIR_WORKTREE_ROLE"

    assert running(evaluate(checkouts.secondary, {variable: "primary"})) == EVERYTHING
    assert running(evaluate(checkouts.primary, {variable: "secondary"})) == set()
    assert running(evaluate(checkouts.secondary, {variable: ""})) == set()


def test_a_role_that_is_none_is_refused(checkouts: Checkouts) -> None:
    """A misspelt role is no way around the guard."""
    command = ["nix-instantiate", "--eval", "--strict", "-E", EXPRESSION % checkouts.primary]
    done = run(command, checkouts.primary, {"AEGIR_WORKTREE_ROLE": "main"})

    assert done.returncode != 0
    assert "Expected primary or secondary in AEGIR_WORKTREE_ROLE, got `main`" in done.stderr


@pytest.mark.parametrize("kind", ["submodule", "separate", "pruned", "relative"])
def test_it_finds_the_role_that_the_script_finds(checkouts: Checkouts, kind: str) -> None:
    """Wherever `.git` is a file as well."""
    directory = checkouts.secondary
    dot_git = directory / ".git"
    if kind in {"submodule", "separate"}:
        elsewhere = directory.parent / kind / "worktrees" / "x"
        shutil.copytree(checkouts.primary / ".git", elsewhere)
        dot_git.write_text(f"gitdir: {elsewhere}\n")
    elif kind == "pruned":
        shutil.rmtree(Path(dot_git.read_text().removeprefix("gitdir: ").strip()))
    else:
        dot_git.write_text("gitdir: ../primary/.git/worktrees/secondary\n")
    script = run([str(directory / "bin/detect-worktree-role.sh")], directory)

    assert evaluate(directory)["env"]["AEGIR_WORKTREE_ROLE"] == script.stdout.strip()


def test_outside_a_checkout_it_says_so(checkouts: Checkouts) -> None:
    """Nothing is started by guess."""
    (checkouts.secondary / ".git").unlink()
    command = ["nix-instantiate", "--eval", "-E", f"({EXPRESSION % checkouts.secondary}).env"]
    done = run([*command, "--strict"], checkouts.secondary)

    assert done.returncode != 0
    assert "Expected a git checkout" in done.stderr
