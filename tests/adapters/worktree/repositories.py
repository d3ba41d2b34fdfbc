"""Real repositories of every kind that git makes, and the role of each checkout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from aegir_adapters.worktree import Role

ODD_NAMES = {
    "spaces": " a  b ",
    "unicode": "Ægir ø",
    "newline": "a\nb",
    "bytes": os.fsdecode(b"\xe9"),
}
SETTINGS = {
    "protocol.file.allow": "always",
    "init.defaultBranch": "trunk",
    "advice.detachedHead": "false",
}


def environment(changed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment without what would decide a role, and with what git wants to know."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIR_", "GIT_", "CDPATH"))}
    settings = {f"GIT_CONFIG_KEY_{n}": key for n, key in enumerate(SETTINGS)}
    settings |= {f"GIT_CONFIG_VALUE_{n}": value for n, value in enumerate(SETTINGS.values())}
    people = {
        f"GIT_{who}_{what}": "a@b.example"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    ours = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(SETTINGS)),
    }
    return kept | settings | people | ours | dict(changed or {})


def git(directory: Path, *arguments: str | Path) -> None:
    """Run git in a directory."""
    asked(directory, *arguments).check_returncode()


def asked(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run git in a directory, and return what it says."""
    return subprocess.run(
        ["git", *map(str, arguments)],
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        env=environment(),
    )


def new(path: Path, *options: str | Path) -> Path:
    """Make a repository with one commit."""
    path.mkdir(parents=True, exist_ok=True)
    git(path, "init", "--quiet", *options)
    git(path, "commit", "--quiet", "--allow-empty", "--message", "first")
    return path


def bare(path: Path) -> Path:
    """Make a bare repository with one commit."""
    source = new(path.parent / "source")
    git(path.parent, "clone", "--quiet", "--bare", source, path)
    return path


def worktree(of: Path, path: Path) -> Path:
    """Add a linked worktree to a repository."""
    git(of, "worktree", "add", "--quiet", "-b", f"branch-of-{path.name}", path)
    return path


def with_submodule(path: Path, *, name: str = "part") -> Path:
    """Make a repository with a submodule at `sub`."""
    source, outer = new(path.parent / "source"), new(path)
    git(outer, "submodule", "--quiet", "add", "--name", name, source, "sub")
    git(outer, "commit", "--quiet", "--message", "with a part")
    return outer


def primary(at: Path) -> Path:
    """Make a repository as `git init` does."""
    return new(at / "primary")


def inside_its_git_directory(at: Path) -> Path:
    """Make a repository; where its hooks run is asked about."""
    return primary(at) / ".git" / "hooks"


def without_commits(at: Path) -> Path:
    """Make a repository that is empty still."""
    git(at, "init", "--quiet", "empty")
    return at / "empty"


def head_is_a_link(at: Path) -> Path:
    """Make a repository whose HEAD is a symbolic link to a branch that is to be."""
    repository = without_commits(at)
    (repository / ".git/HEAD").unlink()
    (repository / ".git/HEAD").symlink_to("refs/heads/trunk")
    return repository


def linked(at: Path) -> Path:
    """Add a worktree to a repository."""
    return worktree(primary(at), at / "linked")


def linked_from_linked(at: Path) -> Path:
    """Add a worktree while in another one."""
    return worktree(linked(at), at / "second")


def linked_to_bare(at: Path) -> Path:
    """Add a worktree to a bare repository."""
    return worktree(bare(at / "bare.git"), at / "linked")


def bare_itself(at: Path) -> Path:
    """Make a bare repository, which is no checkout."""
    return bare(at / "bare.git")


def folder_of_a_hidden_bare(at: Path) -> Path:
    """Make a bare repository that the folder around its worktrees names."""
    bare(at / "project" / ".bare")
    (at / "project" / ".git").write_text("gitdir: ./.bare\n")
    return at / "project"


def linked_to_a_hidden_bare(at: Path) -> Path:
    """Add a worktree to such a repository."""
    return worktree(folder_of_a_hidden_bare(at), at / "project" / "trunk")


def submodule(at: Path) -> Path:
    """Make a submodule."""
    return with_submodule(at / "outer") / "sub"


def submodule_named_worktrees(at: Path) -> Path:
    """Make a submodule whose git directory is `.git/modules/worktrees/x`."""
    return with_submodule(at / "outer", name="worktrees/x") / "sub"


def submodule_of_linked(at: Path) -> Path:
    """Fill the submodule of a linked worktree: a repository of its own below `.git/worktrees`."""
    tree = worktree(with_submodule(at / "outer"), at / "linked")
    git(tree, "submodule", "--quiet", "update", "--init")
    return tree / "sub"


def linked_to_submodule(at: Path) -> Path:
    """Add a worktree to a submodule."""
    return worktree(submodule(at), at / "linked")


def separate(at: Path) -> Path:
    """Make a repository whose git directory lies elsewhere."""
    return new(at / "checkout", "--separate-git-dir", at / "elsewhere")


def separate_below_worktrees(at: Path) -> Path:
    """Make one whose git directory lies in a directory called `worktrees`."""
    (at / "worktrees").mkdir()
    return new(at / "checkout", "--separate-git-dir", at / "worktrees" / "elsewhere")


def separate_and_gone(at: Path) -> Path:
    """Lose the git directory of such a repository."""
    checkout = separate(at)
    (at / "elsewhere").rename(at / "moved")
    return checkout


def linked_to_separate(at: Path) -> Path:
    """Add a worktree to such a repository."""
    return worktree(separate(at), at / "linked")


def nested(at: Path) -> Path:
    """Add a worktree in the tree of its primary."""
    return worktree(primary(at), at / "primary" / "nested")


def primary_around_nested(at: Path) -> Path:
    """Ask the directory beside such a worktree."""
    nested(at)
    return at / "primary"


def repository_in_linked(at: Path) -> Path:
    """Make another repository in a worktree."""
    return new(linked(at) / "other")


def empty_git_directory_in_linked(at: Path) -> Path:
    """Make a directory `.git` that holds nothing, which git passes over."""
    folder = linked(at) / "folder"
    (folder / ".git").mkdir(parents=True)
    return folder


def moved_by_git(at: Path) -> Path:
    """Move a worktree as git likes it."""
    git(at, "-C", linked(at), "worktree", "move", at / "linked", at / "moved")
    return at / "moved"


def moved_by_hand(at: Path) -> Path:
    """Move a worktree as git does not notice."""
    return linked(at).rename(at / "moved")


def pruned(at: Path) -> Path:
    """Have git forget the only worktree, which was moved by hand."""
    moved = moved_by_hand(at)
    git(at / "primary", "worktree", "prune")
    assert not (at / "primary/.git/worktrees").exists()
    return moved


def repository_gone(at: Path) -> Path:
    """Move the repository away from its worktree."""
    tree = linked(at)
    (at / "primary").rename(at / "moved")
    return tree


def locked(at: Path) -> Path:
    """Lock a worktree."""
    tree = linked(at)
    git(tree, "worktree", "lock", "--reason", "on a disk", tree)
    return tree


def primary_through_a_link(at: Path) -> Path:
    """Reach a repository through a symbolic link."""
    (at / "link").symlink_to(primary(at))
    return at / "link"


def linked_through_a_link(at: Path) -> Path:
    """Reach the inside of a worktree through a symbolic link in the primary."""
    inside = linked(at) / "inside"
    inside.mkdir()
    (at / "primary/link").symlink_to(inside)
    return at / "primary" / "link"


def git_directory_is_a_link(at: Path) -> Path:
    """Put a symbolic link in the place of `.git`."""
    repository = primary(at)
    (repository / ".git").rename(at / "elsewhere")
    (repository / ".git").symlink_to(at / "elsewhere")
    return repository


def git_file_is_a_link(at: Path) -> Path:
    """Put a symbolic link in the place of a worktree's `.git` file."""
    tree = linked(at)
    (tree / ".git").rename(at / "gitfile")
    (tree / ".git").symlink_to(at / "gitfile")
    return tree


def relative(at: Path) -> Path:
    """Make the link of a worktree relative, as `worktree.useRelativePaths` does."""
    tree = linked(at)
    (tree / ".git").write_text("gitdir: ../primary/.git/worktrees/linked\n")
    return tree


def relative_and_pruned(at: Path) -> Path:
    """Lose what such a link names."""
    tree = relative(at)
    (at / "primary").rename(at / "moved")
    return tree


def no_repository(at: Path) -> Path:
    """Make a directory."""
    (at / "plain").mkdir()
    return at / "plain"


def missing(at: Path) -> Path:
    """Make nothing."""
    return at / "missing"


def file_in_a_checkout(at: Path) -> Path:
    """Ask about a file, in which nobody can work."""
    path = primary(at) / "file"
    path.touch()
    return path


def odd_git_file(at: Path) -> Path:
    """Make a file `.git` in a checkout that is no link, at which git stops."""
    folder = primary(at) / "folder"
    folder.mkdir()
    (folder / ".git").write_text("something else\n")
    return folder


def empty_git_file(at: Path) -> Path:
    """Make an empty one."""
    folder = odd_git_file(at)
    (folder / ".git").write_text("")
    return folder


def oddly_named(name: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Make a repository below a directory with an odd name."""

    def made(at: Path) -> Path:
        (at / ODD_NAMES[name]).mkdir()
        return make(at / ODD_NAMES[name])

    return made


class Case(msgspec.Struct, frozen=True):
    """A kind of repository.

    Attributes:
        make: makes it in an empty directory, and returns the directory to ask about.
        role: what should be said; `None` where there is no checkout.
        name: the maker's, if absent.
    """

    make: Callable[[Path], Path]
    role: Role | None
    name: str = ""

    def __str__(self) -> str:
        """Return the name."""
        return self.name or self.make.__name__


CASES = [
    Case(primary, "primary"),
    Case(inside_its_git_directory, "primary"),
    Case(without_commits, "primary"),
    Case(head_is_a_link, "primary"),
    Case(linked, "secondary"),
    Case(linked_from_linked, "secondary"),
    Case(linked_to_bare, "secondary"),
    Case(bare_itself, None),
    Case(folder_of_a_hidden_bare, "primary"),
    Case(linked_to_a_hidden_bare, "secondary"),
    Case(submodule, "primary"),
    Case(submodule_named_worktrees, "primary"),
    Case(submodule_of_linked, "primary"),
    Case(linked_to_submodule, "secondary"),
    Case(separate, "primary"),
    Case(separate_below_worktrees, "primary"),
    Case(separate_and_gone, "primary"),
    Case(linked_to_separate, "secondary"),
    Case(nested, "secondary"),
    Case(primary_around_nested, "primary"),
    Case(repository_in_linked, "primary"),
    Case(empty_git_directory_in_linked, "secondary"),
    Case(moved_by_git, "secondary"),
    Case(moved_by_hand, "secondary"),
    Case(pruned, "secondary"),
    Case(repository_gone, "secondary"),
    Case(locked, "secondary"),
    Case(primary_through_a_link, "primary"),
    Case(linked_through_a_link, "secondary"),
    Case(git_directory_is_a_link, "primary"),
    Case(git_file_is_a_link, "secondary"),
    Case(relative, "secondary"),
    Case(relative_and_pruned, "secondary"),
    Case(no_repository, None),
    Case(missing, None),
    Case(file_in_a_checkout, None),
    Case(odd_git_file, None),
    Case(empty_git_file, None),
    *(Case(oddly_named(name, primary), "primary", f"primary-{name}") for name in ODD_NAMES),
    *(Case(oddly_named(name, linked), "secondary", f"linked-{name}") for name in ODD_NAMES),
    *(Case(oddly_named(name, pruned), "secondary", f"pruned-{name}") for name in ODD_NAMES),
]
