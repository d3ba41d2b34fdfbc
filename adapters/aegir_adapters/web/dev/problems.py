"""What is wrong with a page, where, and what to do about it, for the one who works on it."""

from __future__ import annotations

import secrets
import traceback
from pathlib import Path

import httpx
import jinja2
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from aegir_adapters.web.dev.gateway import GatewayError
from aegir_adapters.web.dev.reloading import reloading
from aegir_adapters.web.drawing import html_response
from aegir_adapters.web.page import Page, Templates
from aegir_adapters.web.security import NEVER_STORED
from aegir_stream.config import GATEWAY_URL_VARIABLE

__all__ = [
    "Problem",
    "problem_of_code",
    "problem_of_gateway",
    "problem_of_post",
    "problem_of_template",
]

_TEMPLATES = Templates(Path(__file__).parent / "templates")
_OLDER = (
    "restart it with code that sends it, or let the template do without: {% if name is defined %}."
)
_ON_SAVE = "This page loads again when a file of the checkout is saved."


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no page.

    Attributes:
        status_code: the status of the answer.
        title: what has happened.
        place: file and line, or address.
        message: what is wrong.
        source: the line that is wrong.
        remedies: what to do, a sentence or two each.
        commands: when to type what.
        heals: when the page is there again.
        away: whether the gateway is, so that the page asks until it is back.
    """

    status_code: int
    title: str
    place: str
    message: str
    source: str = ""
    remedies: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    heals: str = _ON_SAVE
    away: bool = False

    def response(self, request: Request, *, version: str) -> Response:
        """Return a page for people, or an object with an `error` for programs."""
        if "text/html" not in request.headers.get("accept", ""):
            error = (
                self.message if self.place in self.message else f"{self.message} - at {self.place}"
            )
            return JSONResponse({"error": error}, self.status_code, headers=NEVER_STORED)
        nonce = secrets.token_urlsafe(16)
        html = _TEMPLATES.html(Page.of("problem.html", problem=self))
        if request.method != "POST":
            # To load the answer to a form again is to send the form again.
            html = reloading(html, nonce=nonce, version=version, away=self.away)
        return html_response(html, nonce=nonce, status_code=self.status_code)


def problem_of_gateway(error: GatewayError, address: str) -> Problem:
    """Return what to do about a gateway."""
    if not error.away:
        return Problem(
            status_code=502,
            title="The gateway sends no page",
            place=address,
            message=str(error),
            heals="Load this page again when that is done.",
        )
    port = httpx.URL(address).port or 80
    return Problem(
        status_code=502,
        title="The gateway does not answer",
        place=address,
        message=str(error),
        commands=(
            ("In the primary checkout", "just gateway"),
            ("If it is on another machine", f"ssh -N -L {port}:localhost:{port} HOST"),
            ("If it is somewhere else", f"{GATEWAY_URL_VARIABLE}=http://127.0.0.1:8092 aegir ui"),
        ),
        heals="This page loads again when the gateway answers.",
        away=True,
    )


def problem_of_post(error: GatewayError, address: str) -> Problem:
    """Return what to do where nobody knows what became of a form."""
    return Problem(
        status_code=502,
        title="The gateway did not answer",
        place=address,
        message=str(error),
        remedies=("It may have done what was asked, or not. Look before you send it again.",),
        heals="This page does not load again by itself.",
    )


def problem_of_template(error: jinja2.TemplateError, page: Page, *, templates: Path) -> Problem:
    """Return what to do about a template that cannot show a page."""
    place, source = _place(error, templates / page.template, inside=templates)
    return Problem(
        status_code=500,
        title="The template cannot be shown",
        place=place,
        message=_message(error),
        source=source,
        remedies=_remedies(error, page),
    )


def problem_of_code(error: Exception, *, templates: Path) -> Problem:
    """Return where code failed that makes a page."""
    place, source = _place(error, templates, inside=templates)
    return Problem(
        status_code=500,
        title="The page cannot be made",
        place=place,
        message=f"{type(error).__name__}: {error}",
        source=source,
        remedies=("The whole traceback is in the terminal of aegir ui.",),
    )


def _message(error: jinja2.TemplateError) -> str:
    if isinstance(error, jinja2.TemplateNotFound):
        return f"There is no template `{error.name}` in this checkout"
    return str(error.message)


def _remedies(error: jinja2.TemplateError, page: Page) -> tuple[str, ...]:
    if isinstance(error, jinja2.TemplateNotFound):
        return ("The gateway may be newer than this checkout: merge its branch, or add the file.",)
    if not isinstance(error, jinja2.UndefinedError):
        return ()
    names = ", ".join(sorted(page.context))
    return (
        f"The gateway sends: {names}. The checkout adds: base_url, bokeh_version, nonce.",
        f"If the name is right, the gateway is older than this checkout: {_OLDER}",
    )


def _place(error: Exception, default: Path, *, inside: Path) -> tuple[str, str]:
    """Return file and line of what is wrong, and the line itself."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        lines = (error.source or "").splitlines()
        source = lines[error.lineno - 1] if 0 < error.lineno <= len(lines) else ""
        return f"{error.filename or default}:{error.lineno}", source.strip()
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(inside)]
    frame = (ours or frames)[-1]
    if isinstance(error, jinja2.TemplateNotFound) and not ours:
        return str(default), ""
    return f"{frame.filename}:{frame.lineno}", frame.line or ""
