"""Pages that load themselves again when what they are made of changes."""

from __future__ import annotations

from pathlib import Path

from aegir_adapters.web.dev.changes import Changes
from aegir_adapters.web.page import Page, Templates

__all__ = ["RELOAD_SCRIPT", "ReloadingTemplates", "reloading"]

RELOAD_SCRIPT = Path(__file__).parent / "static" / "reload.js"


class ReloadingTemplates(Templates):
    """Templates that are read whenever they are needed, and whose pages know their version.

    Args:
        directory: where they lie.
        changes: tells the version.
    """

    def __init__(self, directory: Path, changes: Changes) -> None:
        super().__init__(directory, afresh=True)
        self._changes = changes

    def html(self, page: Page, **surroundings: str) -> str:
        """Return the HTML of a page."""
        # Looked at before the template is read: a change in between is one that is still to come.
        version = self._changes.version()
        html = super().html(page, **surroundings)
        return reloading(html, nonce=surroundings["nonce"], version=version)


def reloading(html: str, *, nonce: str, version: str, away: bool = False) -> str:
    """Return a page with the script in it that loads it again; a part of a page as it is.

    Args:
        html: the page.
        nonce: lets the script run.
        version: version of what the page was made of.
        away: whether to ask for the page until the gateway is back.
    """
    start, end, rest = html.rpartition("</body>")
    if not end:
        return html
    waits = ' data-away="yes"' if away else ""
    script = (
        f'<script nonce="{nonce}" src="/.aegir/reload.js" data-version="{version}"{waits} defer>'
        "</script>"
    )
    return f"{start}{script}{end}{rest}"
