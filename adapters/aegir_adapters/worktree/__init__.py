"""Several checkouts of one repository on one host: their roles, and what they may fight over."""

from __future__ import annotations

from aegir_adapters.worktree.checkout import Checkout, Worktree, checkout_of
from aegir_adapters.worktree.guard import (
    ALLOW_VARIABLE,
    guard_directory,
    guard_port,
    require_free,
)
from aegir_adapters.worktree.place import NotACheckoutError
from aegir_adapters.worktree.ports import Listener, listener
from aegir_adapters.worktree.resources import Setting, directory_setting, port_setting
from aegir_adapters.worktree.role import (
    ROLE_VARIABLE,
    Role,
    detect_role,
    overriding_role,
    role_of,
)

__all__ = [
    "ALLOW_VARIABLE",
    "ROLE_VARIABLE",
    "Checkout",
    "Listener",
    "NotACheckoutError",
    "Role",
    "Setting",
    "Worktree",
    "checkout_of",
    "detect_role",
    "directory_setting",
    "guard_directory",
    "guard_port",
    "listener",
    "overriding_role",
    "port_setting",
    "require_free",
    "role_of",
]
