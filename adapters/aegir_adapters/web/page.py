"""What pages say as text, and the templates that show it. Pure."""

from __future__ import annotations

from typing import Any

import jinja2
import msgspec

__all__ = ["Status", "render"]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the top of the page says about the run.

    Attributes:
        name: last part of the run directory.
        path: the run directory.
        badge: one word, also the style of the badge.
        reason: what is wrong or missing, and the remedy.
        facts: short label and value, in the order shown.
    """

    name: str
    path: str
    badge: str
    reason: str | None = None
    facts: tuple[tuple[str, str], ...] = ()


_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("aegir_adapters.web"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


def render(template: str, **context: Any) -> str:
    """Return the HTML of a template; every value is escaped."""
    return _templates.get_template(template).render(**context)
