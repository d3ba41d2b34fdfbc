"""A checkout as git sees it: its directories, its branch, and the worktrees beside it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from aegir_adapters.worktree.place import Place, place_of
from aegir_adapters.worktree.role import Role
from aegir_stream.errors import AegirError

__all__ = ["Checkout", "Worktree", "checkout_of"]

_BRANCH = "refs/heads/"
_UNBORN = "0" * 40
_NO_BRANCH = ".invalid"
"""What HEAD names where the branch stands in another file: git's `reftable` format."""

_PATIENCE_S = 10.0
_WRONG_USAGE = 129


class Worktree(msgspec.Struct, frozen=True, kw_only=True):
    """One checkout of a repository, as git lists it.

    Attributes:
        path: its top level; the git directory, where git itself does not know more.
        role: `primary` for the repository's own; `None` for a bare repository, which has none.
        branch: the branch checked out; `None` where HEAD is detached.
        commit: what HEAD is; `None` before the first commit, and for a bare repository.
        locked: why it is locked, or an empty text; `None` if it is not.
        prunable: why git would prune it; `None` if it would not.
    """

    path: Path
    role: Role | None
    branch: str | None = None
    commit: str | None = None
    locked: str | None = None
    prunable: str | None = None


class Checkout(msgspec.Struct, frozen=True, kw_only=True):
    """The checkout in which a directory lies.

    Attributes:
        top_level: the directory that holds `.git`.
        git_dir: the checkout's own git directory; it is gone where the worktree was pruned.
        common_dir: the repository's, which all its worktrees share.
        branch: the branch checked out; `None` where HEAD is detached or cannot be read.
        commit: the commit at which HEAD is detached; `None` on a branch.
        worktrees: all checkouts of the repository, the primary first; empty if git cannot tell.
        unlisted: why git could not tell; `None` if it could.
    """

    top_level: Path
    git_dir: Path
    common_dir: Path
    branch: str | None = None
    commit: str | None = None
    worktrees: tuple[Worktree, ...] = ()
    unlisted: str | None = None


def checkout_of(directory: Path) -> Checkout:
    """Return the checkout in which a directory lies. Only the list of worktrees is asked of git.

    Raises:
        NotACheckoutError: it lies in none.
    """
    place = place_of(directory)
    common_dir = _common_dir(place)
    branch, commit = _head(place.git_dir)
    try:
        listed, unlisted = tuple(_worktrees(place, common_dir)), None
    except AegirError as error:
        listed, unlisted = (), str(error)
    return Checkout(
        top_level=place.top_level,
        git_dir=place.git_dir,
        common_dir=common_dir,
        branch=branch,
        commit=commit,
        worktrees=listed,
        unlisted=unlisted,
    )


def _common_dir(place: Place) -> Path:
    """Return the git directory of the repository; of a pruned worktree, where it used to be."""
    if not place.linked:
        return place.git_dir
    try:
        text = (place.git_dir / "commondir").read_bytes()
    except OSError:
        return place.git_dir.parent.parent
    return (place.git_dir / os.fsdecode(text.rstrip(b"\r\n"))).resolve()


def _head(git_dir: Path) -> tuple[str | None, str | None]:
    """Return the branch that HEAD names, or the commit at which it is detached."""
    head = git_dir / "HEAD"
    try:
        # Old repositories have a link to the branch's file.
        text = f"ref: {head.readlink()}" if head.is_symlink() else os.fsdecode(head.read_bytes())
    except OSError:
        return None, None
    text = text.strip()
    if not text.startswith("ref:"):
        return None, text or None
    branch = text.removeprefix("ref:").strip().removeprefix(_BRANCH)
    return (None if branch == _NO_BRANCH else branch), None


def _worktrees(place: Place, common_dir: Path) -> Iterator[Worktree]:
    """Yield what git lists; the first is the repository's own checkout.

    Raises:
        AegirError: it cannot tell.
    """
    for number, facts in enumerate(_records(common_dir)):
        path, role = Path(facts["worktree"]), _role(number, facts)
        if role == "primary" and path == common_dir == place.git_dir:
            # git does not know the top level of a checkout whose git directory lies elsewhere.
            path = place.top_level
        commit = facts.get("HEAD", _UNBORN)
        yield Worktree(
            path=path,
            role=role,
            branch=facts["branch"].removeprefix(_BRANCH) if "branch" in facts else None,
            commit=None if set(commit) == {"0"} else commit,
            locked=facts.get("locked"),
            prunable=facts.get("prunable"),
        )


def _role(number: int, facts: dict[str, str]) -> Role | None:
    if number:
        return "secondary"
    return None if "bare" in facts else "primary"


def _records(common_dir: Path) -> Iterator[dict[str, str]]:
    """Yield the attributes of each worktree: a name, and behind a space its value.

    git before 2.36 has no `-z`; there a path with a line break is cut.
    """
    done = _git(common_dir, "worktree", "list", "--porcelain", "-z")
    end = "\0"
    if done.returncode == _WRONG_USAGE:
        done, end = _git(common_dir, "worktree", "list", "--porcelain"), "\n"
    if done.returncode:
        said = os.fsdecode(done.stderr).strip().splitlines()
        raise AegirError(said[0] if said else f"git ended with exit code {done.returncode}")
    for record in os.fsdecode(done.stdout).split(end + end):
        pairs = (line.partition(" ") for line in record.split(end) if line)
        facts = {name: value for name, _, value in pairs}
        if "worktree" in facts:
            yield facts


def _git(common_dir: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Ask git about a repository, whatever GIT_DIR and the working directory are.

    Raises:
        AegirError: it is not installed, or does not answer.
    """
    command = ["git", f"--git-dir={common_dir}", *arguments]
    try:
        return subprocess.run(  # noqa: S603 - the arguments are ours
            command, check=False, capture_output=True, cwd="/", timeout=_PATIENCE_S
        )
    except FileNotFoundError as error:
        raise AegirError("git is not installed") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AegirError(f"git does not answer: {error}") from error
