"""Where a checkout lies, and the git directory that it belongs to. No git is asked.

`bin/detect-worktree-role.sh` follows the same steps; the tests compare the two.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from aegir_stream.errors import AegirError

__all__ = ["NotACheckoutError", "Place", "place_of"]

_PREFIX = b"gitdir: "
_REMEDY = "Change into a checkout of a git repository, or make one: git worktree add PATH BRANCH"


class NotACheckoutError(AegirError, FileNotFoundError):
    """A directory was asked about that lies in no checkout of a git repository."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A checkout and its git directory.

    Attributes:
        top_level: the directory that holds `.git`.
        git_dir: what is `.git`, or what the file `.git` names; it may be gone in that case.
        linked: whether `git worktree add` made the checkout.
    """

    top_level: Path
    git_dir: Path
    linked: bool


def place_of(directory: Path) -> Place:
    """Return the checkout in which a directory lies: the nearest `.git` above it decides.

    Raises:
        NotACheckoutError: there is none, or its `.git` is a file that names no git directory.
    """
    start = _physical(directory)
    for folder in (start, *start.parents):
        dot_git = folder / ".git"
        if _has_head(dot_git):
            return Place(top_level=folder, git_dir=_physical(dot_git), linked=False)
        if _is_file(dot_git):
            return _linked_place(dot_git)
    raise NotACheckoutError(
        f"Expected a git checkout, got `{start}`: neither it nor a directory above it holds `.git`",
        hint=_REMEDY,
    )


def _linked_place(dot_git: Path) -> Place:
    """Return the place of a checkout whose git directory lies elsewhere.

    Submodules and clones with `--separate-git-dir` have a file `.git` as well. What only linked
    worktrees have is a git directory below `worktrees/` that names a common one in `commondir`;
    where it was pruned, its name has to do.
    """
    git_dir = _named_by(dot_git)
    try:
        git_dir = _physical(git_dir)
    except NotACheckoutError:
        linked = True
    else:
        linked = _is_file(git_dir / "commondir")
    linked = linked and git_dir.parent.name == "worktrees"
    return Place(top_level=dot_git.parent, git_dir=git_dir, linked=linked)


def _named_by(dot_git: Path) -> Path:
    """Return the path in a `.git` file; a relative one counts from the file's directory.

    Raises:
        NotACheckoutError: it holds none, or cannot be read.
    """
    try:
        text = dot_git.read_bytes()
    except OSError as error:
        raise NotACheckoutError(f"`{dot_git}` cannot be read: {error.strerror}") from error
    named = text.removeprefix(_PREFIX).rstrip(b"\r\n")
    if not text.startswith(_PREFIX) or not named or b"\0" in named:
        raise NotACheckoutError(
            f"Expected `gitdir: PATH` in `{dot_git}`, got `{os.fsdecode(text[:80])}`",
            hint="It names no git directory; git worktree repair may mend it",
        )
    return dot_git.parent / os.fsdecode(named)


def _physical(directory: Path) -> Path:
    """Return a directory's path without symbolic links.

    Raises:
        NotACheckoutError: there is no such directory.
    """
    try:
        physical = directory.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise NotACheckoutError(f"Expected a directory, got `{directory}`") from error
    if not (physical.is_dir() and os.access(physical, os.X_OK)):
        raise NotACheckoutError(f"Expected a directory to work in, got `{directory}`")
    return physical


def _has_head(dot_git: Path) -> bool:
    """Tell whether there is a repository, not only its directory; old ones have a link as HEAD."""
    try:
        (dot_git / "HEAD").lstat()
    except OSError:
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its directory may not be searched
        return False
