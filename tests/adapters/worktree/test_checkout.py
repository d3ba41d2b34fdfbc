from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from adapters.worktree.conftest import Made
from adapters.worktree.repositories import (
    asked,
    bare,
    git,
    head_is_a_link,
    linked,
    linked_to_bare,
    linked_to_separate,
    locked,
    moved_by_hand,
    no_repository,
    primary,
    pruned,
    separate,
    worktree,
)
from aegir_adapters.worktree import NotACheckoutError, checkout_of

pytestmark = [
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git"),
    pytest.mark.usefixtures("_own_git"),
]


def git_says(directory: Path, *arguments: str) -> str | None:
    """Return one line of git's; `None` if it does not know."""
    done = asked(directory, *arguments)
    return None if done.returncode else done.stdout.removesuffix("\n")


def test_git_agrees_on_every_kind_of_repository(made: Made) -> None:
    """Wherever git finds a checkout: on its top level, git directories and branch."""
    if made.role is None:
        with pytest.raises(NotACheckoutError):
            checkout_of(made.directory)
        return
    found = checkout_of(made.directory)
    where = ("rev-parse", "--path-format=absolute")
    questions = {
        str(found.top_level): (*where, "--show-toplevel"),
        str(found.git_dir): (*where, "--git-dir"),
        str(found.common_dir): (*where, "--git-common-dir"),
        found.branch: ("symbolic-ref", "--short", "HEAD"),
    }
    for answer, question in questions.items():
        assert git_says(made.directory, *question) in {answer, None}


def test_git_is_heard_in_that_test(tmp_path: Path) -> None:
    """Where nothing is odd it answers all four questions."""
    tree = linked(tmp_path)
    assert git_says(tree, "rev-parse", "--path-format=absolute", "--git-dir") == str(
        tmp_path / "primary/.git/worktrees/linked"
    )
    assert git_says(tree, "symbolic-ref", "--short", "HEAD") == "branch-of-linked"


def test_worktrees_are_listed_with_their_roles(tmp_path: Path) -> None:
    """From each of them alike: path, branch or commit, and what git says of its state."""
    tree = locked(tmp_path)
    git(tree, "worktree", "add", "--quiet", "--detach", tmp_path / "a\nb")
    worktree(tree, tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    commit = git_says(tree, "rev-parse", "HEAD")
    listed = {found.path.name: found for found in checkout_of(tree).worktrees}

    assert [listed[name].role for name in ("primary", "linked", "a\nb", "gone")] == [
        "primary",
        *["secondary"] * 3,
    ]
    assert listed["linked"].branch == "branch-of-linked"
    assert (listed["linked"].locked, listed["primary"].locked) == ("on a disk", None)
    assert (listed["a\nb"].branch, listed["a\nb"].commit) == (None, commit)
    assert listed["gone"].prunable
    assert listed["primary"].prunable is None
    assert checkout_of(tmp_path / "primary").worktrees == checkout_of(tree).worktrees


def test_a_bare_repository_has_no_role(tmp_path: Path) -> None:
    """It is listed first, and nothing can run there."""
    trunk = linked_to_bare(tmp_path)
    first, second = checkout_of(trunk).worktrees

    assert (first.path, first.role, first.branch, first.commit) == (
        tmp_path / "bare.git",
        None,
        None,
        None,
    )
    assert (second.path, second.role) == (trunk, "secondary")


def test_a_checkout_whose_git_directory_lies_elsewhere_is_listed_itself(tmp_path: Path) -> None:
    """Git names the git directory there, which is all that a worktree beside it can know."""
    tree = linked_to_separate(tmp_path)

    assert checkout_of(tmp_path / "checkout").worktrees[0].path == tmp_path / "checkout"
    assert checkout_of(tree).worktrees[0].path == tmp_path / "elsewhere"


def test_a_detached_head_is_a_commit(tmp_path: Path) -> None:
    """And no branch."""
    repository = primary(tmp_path)
    git(repository, "checkout", "--quiet", "--detach")
    found = checkout_of(repository)

    assert (found.branch, found.commit) == (None, git_says(repository, "rev-parse", "HEAD"))


def test_a_head_that_is_a_link_names_its_branch(tmp_path: Path) -> None:
    """Repositories of an older git have one."""
    assert checkout_of(head_is_a_link(tmp_path)).branch == "trunk"


def test_branches_in_one_table_are_not_read_from_head(tmp_path: Path) -> None:
    """Git's `reftable` format leaves a name there that no branch has."""
    repository = primary(tmp_path)
    (repository / ".git/HEAD").write_text("ref: refs/heads/.invalid\n")
    assert checkout_of(repository).branch is None


def test_a_pruned_worktree_still_knows_its_repository(tmp_path: Path) -> None:
    """By the name that its git directory had; its branch is gone."""
    found = checkout_of(pruned(tmp_path))

    assert found.git_dir == tmp_path / "primary/.git/worktrees/linked"
    assert found.common_dir == tmp_path / "primary/.git"
    assert (found.branch, found.commit) == (None, None)
    assert [tree.path for tree in found.worktrees] == [tmp_path / "primary"]


def test_where_git_fails_the_rest_is_told(tmp_path: Path) -> None:
    """The list is empty, and git's own words say why."""
    repository = primary(tmp_path)
    (repository / ".git/config").write_text("[oops\n")
    found = checkout_of(repository)

    assert found.branch == "trunk"
    assert found.worktrees == ()
    assert "bad config" in str(found.unlisted)


def test_without_git_the_rest_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is empty, and says that git is missing."""
    tree = linked(tmp_path)
    monkeypatch.setenv("PATH", str(no_repository(tmp_path)))
    found = checkout_of(tree)

    assert found.common_dir == tmp_path / "primary/.git"
    assert (found.worktrees, found.unlisted) == ((), "git is not installed")


def test_git_before_2_36_lists_them_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know `-z`, and says so with its exit code for a wrong command line."""
    tree = locked(tmp_path)
    expected = checkout_of(tree)
    (tmp_path / "bin").mkdir()
    older = tmp_path / "bin" / "git"
    older.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" != -z ] || exit 129; done\n'
        f'exec "{shutil.which("git")}" "$@"\n'
    )
    older.chmod(0o755)
    monkeypatch.setenv("PATH", f"{older.parent}:{os.environ['PATH']}")

    assert checkout_of(tree) == expected
    assert len(expected.worktrees) == 2


def test_variables_of_git_name_no_other_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a hook they name the one that runs it."""
    repository = separate(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(bare(tmp_path / "other.git")))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    found = checkout_of(repository)

    assert found.git_dir == tmp_path / "elsewhere"
    assert [tree.path for tree in found.worktrees] == [repository]


def test_a_worktree_that_was_moved_by_hand_is_listed_where_it_was(tmp_path: Path) -> None:
    """Until `git worktree repair` is run in it; its own top level is where it is."""
    found = checkout_of(moved_by_hand(tmp_path))

    assert found.top_level == tmp_path / "moved"
    assert [tree.path.name for tree in found.worktrees] == ["primary", "linked"]
    assert found.worktrees[1].prunable
