"""What pages say, apart from how they look, and the templates that show it. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import jinja2
import msgspec

__all__ = ["TEMPLATES", "Page", "Status", "Templates"]

TEMPLATES = Path(__file__).parent / "templates"
"""Where the templates of the pages lie."""


class Page(msgspec.Struct, frozen=True):
    """What a page says: everything that its template needs of the run.

    Attributes:
        template: name of the template that shows it.
        context: what the template shows; nothing that JSON cannot hold, so that a template says
            the same whether the context was made here or came from another server.
    """

    template: str
    context: dict[str, Any]

    @classmethod
    def of(cls, template: str, **context: object) -> Self:
        """Return what a page says; structs become objects of JSON."""
        return cls(template, msgspec.to_builtins(context))


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


class Templates:
    """The templates in a directory.

    Args:
        directory: where they lie.
        afresh: read each whenever it is needed, for those who edit them.
    """

    def __init__(self, directory: Path = TEMPLATES, *, afresh: bool = False) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(directory),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            cache_size=0 if afresh else 400,
            auto_reload=False,
        )

    def html(self, page: Page, **surroundings: str) -> str:
        """Return the HTML of a page; every value is escaped.

        Args:
            page: what it says.
            surroundings: what depends on the answer and not on the run, such as its nonce.

        Raises:
            jinja2.TemplateError: the template is not there, is none, or shows what the page does
                not say.
        """
        template = self._environment.get_template(page.template)
        return template.render({**page.context, **surroundings})
