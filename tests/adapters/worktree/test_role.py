from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.worktree.conftest import Made
from adapters.worktree.repositories import environment, linked, primary, separate_below_worktrees
from aegir_adapters.worktree import NotACheckoutError, detect_role, role_of
from aegir_stream.errors import OptionError

SCRIPT = Path(__file__).parents[3] / "bin" / "detect-worktree-role.sh"
SHELLS = [
    command
    for command in (["dash"], ["bash", "--posix"], ["bash"], ["busybox", "sh"])
    if shutil.which(command[0])
]
OUTSIDE, WRONG = 1, 2
VARIABLE = "AEGIR_WORKTREE_ROLE"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def said_by_shell(
    shell: list[str],
    *arguments: str | Path,
    directory: Path,
    variables: Mapping[str, str] | None = None,
) -> str | int:
    """Return the role that the script prints, or its exit code if it prints none."""
    done = subprocess.run(
        [*shell, SCRIPT, *arguments],
        cwd=directory,
        # A shell believes in PWD, which may lead through links, if it is where the shell is.
        env=environment({"PWD": str(directory), **(variables or {})}),
        check=False,
        capture_output=True,
        timeout=20,
    )
    assert bool(done.stdout) == (not done.returncode)
    assert bool(done.stderr) == bool(done.returncode)
    return done.stdout.decode().removesuffix("\n") or done.returncode


def said_by_library(directory: Path, variables: Mapping[str, str] | None = None) -> str | int:
    """Return the role that the library returns, or the exit code for what it raises."""
    try:
        return role_of(directory, variables or {})
    except NotACheckoutError:
        return OUTSIDE
    except OptionError:
        return WRONG


def test_there_are_two_shells_to_try() -> None:
    """A matrix without shells would say nothing; Debian's `sh` is dash, others' is bash."""
    assert len(SHELLS) >= 2


def test_shell_and_library_know_every_kind_of_repository(made: Made) -> None:
    """Both say of each what the table says, asked by argument and by working directory."""
    expected = made.role or OUTSIDE
    assert said_by_library(made.directory) == expected
    for shell in SHELLS:
        assert said_by_shell(shell, made.directory, directory=Path("/")) == expected
        if made.directory.is_dir():
            assert said_by_shell(shell, directory=made.directory) == expected


def test_a_subdirectory_has_the_role_of_its_checkout(made: Made) -> None:
    """However deep it lies. In what is no directory nothing can lie."""
    below = made.directory / "some" / "where"
    if made.directory.is_dir():
        below.mkdir(parents=True, exist_ok=True)
    expected = made.role if made.role and below.is_dir() else OUTSIDE

    assert said_by_library(below) == expected
    for shell in SHELLS:
        assert said_by_shell(shell, below, directory=Path("/")) == expected
        if below.is_dir():
            assert said_by_shell(shell, directory=below) == expected


@pytest.mark.parametrize("value", ["primary", "secondary", "", "secondry", "PRIMARY", "primary\n"])
def test_the_variable_overrides_what_is_detected(made: Made, value: str) -> None:
    """A role is taken, an empty value counts as unset, anything else is an error."""
    variables = {VARIABLE: value}
    expected = value if value in {"primary", "secondary"} else WRONG if value else None
    expected = expected or made.role or OUTSIDE

    assert said_by_library(made.directory, variables) == expected
    for shell in SHELLS:
        said = said_by_shell(shell, made.directory, directory=Path("/"), variables=variables)
        assert said == expected


def test_the_library_says_what_is_wrong(tmp_path: Path) -> None:
    """The message names the directory, or the variable with the values it may have."""
    with pytest.raises(NotACheckoutError, match=f"got `{tmp_path}`.*git worktree add"):
        detect_role(tmp_path)
    with pytest.raises(OptionError, match="`primary` or `secondary` in AEGIR_WORKTREE_ROLE, got"):
        role_of(tmp_path, {VARIABLE: "secondry"})


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_the_script_says_what_is_wrong(shell: list[str], tmp_path: Path) -> None:
    """The message names the directory, or the variable with the values it may have."""
    command = [*shell, str(SCRIPT), str(tmp_path)]
    outside = subprocess.run(command, check=False, capture_output=True, text=True, env={})
    wrong = subprocess.run(
        command, check=False, capture_output=True, text=True, env={VARIABLE: "secondry"}
    )

    assert f"Expected a git checkout, got `{tmp_path}`" in outside.stderr
    assert "`primary` or `secondary` in AEGIR_WORKTREE_ROLE, got `secondry`" in wrong.stderr


def test_the_script_can_be_started_as_it_is(tmp_path: Path) -> None:
    """It is executable, and needs nothing on PATH: neither git nor another program."""
    done = subprocess.run(
        [SCRIPT, linked(tmp_path)], check=True, capture_output=True, env={"PATH": "/nowhere"}
    )
    assert done.stdout == b"secondary\n"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_a_relative_argument_counts_from_the_working_directory(
    shell: list[str], tmp_path: Path
) -> None:
    """Names that `cd` has another meaning for are names of directories here."""
    linked(tmp_path)
    (tmp_path / "-").symlink_to("linked")
    traps = {"CDPATH": str(tmp_path), "OLDPWD": str(tmp_path / "primary")}

    for name in ("linked", "-", "./linked", "linked/", "linked/../linked"):
        assert said_by_shell(shell, name, directory=tmp_path, variables=traps) == "secondary"
    assert said_by_shell(shell, "..", directory=tmp_path / "primary", variables=traps) == OUTSIDE
    assert said_by_shell(shell, "nothing", directory=tmp_path / "primary", variables=traps) == 1
    assert said_by_shell(shell, "primary", "linked", directory=tmp_path) == WRONG


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_a_directory_that_was_removed_is_no_checkout(shell: list[str], tmp_path: Path) -> None:
    """Who stands in it is told so, and is not kept waiting."""
    gone = primary(tmp_path) / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *shell, SCRIPT],
        cwd=gone,
        check=False,
        capture_output=True,
        timeout=20,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (OUTSIDE, b"")


def test_the_library_survives_a_working_directory_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no checkout."""
    gone = primary(tmp_path) / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotACheckoutError):
        detect_role(Path())


def test_variables_of_git_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hook GIT_DIR names the repository that runs it, whichever directory is asked about."""
    tree = linked(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "primary/.git"))
    variables = {"GIT_DIR": str(tmp_path / "primary/.git")}

    assert detect_role(tree) == "secondary"
    for shell in SHELLS:
        assert said_by_shell(shell, directory=tree, variables=variables) == "secondary"


PIECES = [
    *("..", ".", "", " ", "worktrees", "linked", "elsewhere", "primary", ".git", "nothing", "a\nb"),
    *("../primary/.git/worktrees/linked", "../worktrees/elsewhere", "\\", "*", "$HOME", "é"),
]
LINKS = st.builds(
    lambda prefix, pieces, end: prefix + "/".join(pieces) + end,
    st.sampled_from(["gitdir: ", "gitdir: ", "gitdir: ", "gitdir:", " gitdir: ", "", "GITDIR: "]),
    st.lists(st.sampled_from(PIECES), min_size=0, max_size=6),
    st.sampled_from(["\n", "", "\n\n", "/", "/.\n", " \n"]),
)


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Git directories that a link may lead to, and a directory for the link."""
    at = tmp_path_factory.mktemp("around")
    linked(at)
    separate_below_worktrees(at)
    (at / "asked").mkdir()
    return at


@given(link=LINKS, shell=st.sampled_from(SHELLS), absolute=st.booleans())
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_shell_and_library_read_any_link_alike(
    around: Path, link: str, shell: list[str], *, absolute: bool
) -> None:
    """Whatever stands in a file `.git`, one says what the other says."""
    if absolute:
        link = link.replace("gitdir: ", f"gitdir: {around}/asked/", 1)
    (around / "asked" / ".git").write_bytes(os.fsencode(link))

    assert said_by_shell(shell, directory=around / "asked") == said_by_library(around / "asked")
