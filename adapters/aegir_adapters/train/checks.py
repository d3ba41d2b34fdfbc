"""What a training run needs, checked before anything heavy begins: the verdicts."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["Check", "Verdict", "missing", "ok", "unknown"]

Verdict = Literal["ok", "missing", "refused", "unknown"]
"""`missing`: training cannot begin without it. `refused`: it is somebody else's. `unknown`: it
cannot be told from here, and training may begin."""


class Check(Struct, frozen=True, kw_only=True):
    """One thing that a run needs.

    Attributes:
        name: what was looked at.
        verdict: how it stands.
        detail: what was found.
        remedy: what to do about it.
    """

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Check:
    """Return the verdict on something that is there."""
    return Check(name=name, verdict="ok", detail=detail)


def missing(name: str, detail: str, remedy: str) -> Check:
    """Return the verdict on something that is not there, and what to do about it."""
    return Check(name=name, verdict="missing", detail=detail, remedy=remedy)


def unknown(name: str, detail: str) -> Check:
    """Return the verdict on something that cannot be told from here."""
    return Check(name=name, verdict="unknown", detail=detail)
