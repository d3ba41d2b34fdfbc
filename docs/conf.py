"""How the documentation is built: `make docs`."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "aegir-stream"
author = "The aegir-stream authors"
project_copyright = author
release = version = installed_version("aegir-stream")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "decisions/template.md"]
nitpicky = True
nitpick_ignore_regex = [
    # Other projects' classes have pages of their own, which an offline build cannot look up.
    ("py:.*", r"(abc|anyio|collections\.abc|msgspec|hypothesis|pathlib)\..*"),
    ("py:.*", r"(starlette|torch|transformers)\..*"),
    # Arrays of numbers, whose annotations Python 3.11 cannot evaluate.
    ("py:class", r"aegir_stream\.views\.reservoir\.Activations"),
    # Type variables have no entry.
    ("py:.*", r"aegir_.*\.(P|S|T|State)"),
]

myst_heading_anchors = 3
# DuckDB's struct literals are no SQL that Pygments knows.
suppress_warnings = ["misc.highlighting_failure"]

# Single backticks in docstrings are code, as they are in Markdown.
default_role = "code"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "aegir-stream"
html_copy_source = False


def keep_sentences_whole(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Keep napoleon from reading "this: that" of a property or constant as "type: description".

    It looks for a type in the first line only, which an empty comment takes here.
    """
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Connect the hook, ahead of napoleon's own."""
    app.connect("autodoc-process-docstring", keep_sentences_whole, priority=400)
