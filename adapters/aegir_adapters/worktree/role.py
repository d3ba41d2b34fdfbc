"""Whether a checkout is the primary one of its repository, or a linked worktree beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from aegir_adapters.worktree.place import place_of
from aegir_stream.errors import OptionError

__all__ = ["ROLE_VARIABLE", "Role", "detect_role", "overriding_role", "role_of"]

Role: TypeAlias = Literal["primary", "secondary"]
"""`primary`: the repository's own checkout, which has the shared services. `secondary`: one that
`git worktree add` made beside it."""

ROLE_VARIABLE = "AEGIR_WORKTREE_ROLE"
"""Environment variable that overrides what is detected."""

_ROLES: Mapping[str, Role] = {"primary": "primary", "secondary": "secondary"}


def detect_role(directory: Path) -> Role:
    """Return the role of the checkout in which a directory lies. Starts no process.

    Submodules, clones with `--separate-git-dir` and all other checkouts that git made without
    `worktree add` are primary.

    Raises:
        NotACheckoutError: it lies in none.
    """
    return "secondary" if place_of(directory).linked else "primary"


def role_of(directory: Path, environment: Mapping[str, str]) -> Role:
    """Return the role that `AEGIR_WORKTREE_ROLE` gives a checkout, else the one detected.

    An empty value counts as unset.

    Raises:
        NotACheckoutError: the variable is not set, and the directory lies in no checkout.
        OptionError: the variable holds something else than a role.
    """
    return overriding_role(environment) or detect_role(directory)


def overriding_role(environment: Mapping[str, str]) -> Role | None:
    """Return the role that `AEGIR_WORKTREE_ROLE` names; `None` if it is unset or empty.

    Raises:
        OptionError: it holds something else than a role.
    """
    value = environment.get(ROLE_VARIABLE)
    if not value:
        return None
    if value not in _ROLES:
        raise OptionError(
            f"Expected `primary` or `secondary` in {ROLE_VARIABLE}, got `{value}`",
            hint=f"Or detect the role: unset {ROLE_VARIABLE}",
        )
    return _ROLES[value]
