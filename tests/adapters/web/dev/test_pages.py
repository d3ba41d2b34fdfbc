"""The pages of a development server: drawn from its own files, with the gateway's data."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from aegir_adapters.web import create_app, plots, serve
from aegir_adapters.web.dev import changes, create_ui
from aegir_adapters.web.dev.changes import Changes
from aegir_adapters.web.page import TEMPLATES
from aegir_adapters.web.static_files import STATIC
from aegir_adapters.web.stopping import Stopping
from aegir_stream.progress import ProgressFeed

pytestmark = pytest.mark.anyio

Connect = Callable[[Starlette], AbstractAsyncContextManager[Any]]
HTML = {"accept": "text/html"}
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """A copy of the templates."""
    return shutil.copytree(TEMPLATES, tmp_path / "templates")


@pytest.fixture
async def client(run: Any, templates: Path, connect: Connect) -> AsyncIterator[Any]:
    """A client of a development server with templates of its own."""
    await run.step(1)
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with connect(create_ui(gateway.address, templates=templates)) as client:
            client.gateway = gateway
            yield client


def edit(path: Path, old: str, new: str) -> int:
    """Change a file as an editor does, by putting another in its place; return the line."""
    text = path.read_text("utf-8")
    assert old in text
    fresh = path.with_suffix(".new")
    fresh.write_text(text.replace(old, new, 1), "utf-8")
    fresh.replace(path)
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize("path", ["/", "/setup/run/run/0", "/setup/run", "/setup/run/run/0/sae/"])
async def test_pages_are_drawn_from_the_files_of_the_checkout(
    client: Any, templates: Path, path: str
) -> None:
    """An edit shows in the next answer, and the data is the gateway's."""
    for name in ("page.html", "layout.html"):
        edit(templates / name, "</body>", "<p>edited</p></body>")
    page = await client.http.get(path)

    assert page.status_code == 200
    assert "<p>edited</p>" in page.text
    assert "run</h1>" in page.text or "run " in page.text
    assert page.headers["cache-control"] == "no-store"


async def test_a_page_runs_the_script_that_reloads_it(client: Any) -> None:
    """The script has the nonce of its answer; a part of a page, which runs nothing, has none."""
    page = await client.http.get("/")
    part = await client.http.get("/live")
    (nonce,) = re.findall(r"'nonce-([^']+)'", page.headers["content-security-policy"])
    script = await client.http.get("/.aegir/reload.js")

    assert f'<script nonce="{nonce}" src="/.aegir/reload.js"' in page.text
    assert "<script" not in part.text
    assert script.headers["content-type"].startswith("text/javascript")


async def test_the_gateway_adds_no_such_script(client: Any) -> None:
    """Only a development server reloads pages."""
    assert "reload.js" not in (await client.http.get(client.gateway.address)).text


async def test_the_address_in_a_page_is_that_of_the_one_who_drew_it(client: Any) -> None:
    """What a reader copies from the page works where the page is."""
    assert f"curl -N {client.http.base_url}" in (await client.http.get("/")).text


async def test_hostile_text_is_escaped_here(run: Any, client: Any) -> None:
    """What the gateway sends is the text of the run, and a template escapes it."""
    run.directory.write_metadata("checkpoint-1", {"run_id": HOSTILE})
    page = await client.http.get("/")

    assert HOSTILE not in page.text
    assert "&lt;img" in page.text


async def test_drawings_of_the_gateway_are_shown(run: Any, client: Any) -> None:
    """Curves come as SVG, and stay SVG."""
    with ProgressFeed(run.directory.root, total=3) as feed:
        for iteration in range(3):
            feed.append(iter=iteration, score=iteration / 3)
    page = await client.http.get("/setup/run/run/0")
    listed = await client.http.get("/setup/run")

    assert '<svg class="trajectory"' in page.text
    assert '<svg class="spark"' in listed.text


async def test_charts_are_drawn_here(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python code of the checkout draws the charts; marks and layers are the gateway's."""
    monkeypatch.setitem(plots._ACCENT, "light", "#123456")
    here = await client.http.get("/charts/light.json")

    assert "#123456" in here.text
    assert "api/view/overview/stream" in here.text


@pytest.mark.parametrize("below", ["", "/setup/run/run/0/sae", "/setup/run"])
async def test_styles_and_scripts_come_from_the_checkout(
    client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, below: str
) -> None:
    """They are read whenever they are asked for, new ones as well, at any depth."""
    static = shutil.copytree(STATIC, tmp_path / "static")
    monkeypatch.setattr("aegir_adapters.web.static_files.STATIC", static)
    (static / "page.css").write_text("body { color: red }", "utf-8")
    (static / "new.js").write_text("1", "utf-8")
    style = await client.http.get(f"{below}/static/page.css")
    script = await client.http.get(f"{below}/static/new.js")
    nothing = await client.http.get(f"{below}/static/none.js")
    bokeh = await client.http.get(f"{below}/static/bokeh.min.js")

    assert style.text == "body { color: red }"
    assert style.headers["cache-control"] == "no-cache"
    assert script.headers["content-type"].startswith("text/javascript")
    assert (nothing.status_code, bokeh.status_code) == (404, 200)
    assert "none.js" in nothing.json()["error"]


# -- templates that cannot be shown ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("{{ status.nick }}", "has no attribute &#39;nick&#39;"),
        ("{{ statsu }}", "&#39;statsu&#39; is undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ status.name | nofilter }}", "No filter named &#39;nofilter&#39;"),
        ('{% include "gone.html" %}', "There is no template `gone.html` in this checkout"),
    ],
)
async def test_a_broken_template_is_named(
    client: Any, templates: Path, broken: str, said: str
) -> None:
    """The page says which file, which line and what is wrong; it heals with the next save."""
    template = templates / "page.html"
    line = edit(template, "<h1>{{ status.name }}</h1>", broken)
    page = await client.http.get("/", headers=HTML)
    data = await client.http.get("/api/p5/runs")
    edit(template, broken, "<h1>{{ status.name }}</h1>")
    healed = await client.http.get("/", headers=HTML)

    assert page.status_code == 500
    assert f"{template}:{line}" in page.text
    assert said in page.text
    assert "reload.js" in page.text
    assert (data.status_code, healed.status_code) == (200, 200)


async def test_a_broken_part_of_a_template_is_named(client: Any, templates: Path) -> None:
    """The place is in the file that is wrong, not in the one that includes it."""
    line = edit(templates / "run.html", "{{ status.reason }}", "{{ status.season }}")
    edit(templates / "run.html", "{%- if status.reason %}", "{%- if true %}")
    page = await client.http.get("/", headers=HTML)

    assert f"{templates / 'run.html'}:{line}" in page.text
    assert "{{ status.season }}" in page.text


async def test_what_an_older_gateway_does_not_send_is_named(client: Any, templates: Path) -> None:
    """The page lists what the gateway does send, and both remedies."""
    edit(templates / "page.html", "{{ status.name }}</h1>", "{{ harvest }}</h1>")
    page = await client.http.get("/", headers=HTML)

    assert "harvest" in page.text
    names = "has_completions, has_data, has_sweeps, status, table, viewer_address"
    assert f"The gateway sends: {names}." in page.text
    assert "restart it" in page.text
    assert "{% if name is defined %}" in page.text


async def test_a_template_of_a_newer_gateway_is_named(client: Any, templates: Path) -> None:
    """A page that this checkout knows no template for says so."""
    (templates / "page.html").unlink()
    page = await client.http.get("/", headers=HTML)

    assert "There is no template `page.html` in this checkout" in page.text
    assert "newer" in page.text


async def test_code_that_fails_in_a_template_is_named(client: Any, templates: Path) -> None:
    """An error of Python in an expression has its file and line too."""
    line = edit(templates / "page.html", "{{ status.name }}</h1>", "{{ 1 / 0 }}</h1>")
    page = await client.http.get("/", headers=HTML)

    assert page.status_code == 500
    assert f"{templates / 'page.html'}:{line}" in page.text
    assert "ZeroDivisionError" in page.text


async def test_programs_are_told_as_well(client: Any, templates: Path) -> None:
    """The script of a page, which asks for no HTML, gets the error as JSON."""
    edit(templates / "run.html", "{{ status.badge }}", "{{ statsu }}")
    answer = await client.http.get("/live")

    assert answer.status_code == 500
    assert "'statsu' is undefined" in answer.json()["error"]


# -- versions --------------------------------------------------------------------------------------


async def test_a_reader_of_versions_hears_of_a_change(client: Any, templates: Path) -> None:
    """The present version at once, and another one when a file is saved."""
    async with client.open("/.aegir/changes") as stream:
        first = await stream.next()
        edit(templates / "page.html", "</body>", "<p>edited</p></body>")
        second = await stream.until("message")
    page = await client.http.get("/")

    assert first.data != second.data
    assert f'data-version="{second.data}"' in page.text


def test_a_version_is_that_of_the_files(templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes with a file of a page, and goes back; other files do not matter."""
    watched = Changes([templates], stopping=Stopping(lambda: False))
    before = watched.version()
    (templates / "page.html~").write_text("backup", "utf-8")
    beside = watched.version()
    (templates / "new.html").write_text("new", "utf-8")
    added = watched.version()
    (templates / "new.html").unlink()

    assert before == beside == watched.version() != added


def test_a_new_process_is_a_new_version(templates: Path) -> None:
    """Pages of the process before may have been made by other code."""
    stopping = Stopping(lambda: False)
    assert Changes([templates], stopping=stopping).version() != (
        Changes([templates], stopping=stopping).version()
    )


def test_a_file_that_goes_while_it_is_looked_at(templates: Path) -> None:
    """Editors put a new file in the place of the old one; a look in between fails nobody."""
    assert changes._look(templates / "gone.html") == (str(templates / "gone.html"), 0, 0)


async def test_it_can_be_served_again(run: Any, connect: Connect) -> None:
    """Stopping leaves nothing behind that stops the next server."""
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        app = create_ui(gateway.address)
        for _ in range(2):
            async with connect(app) as client, client.open("/.aegir/changes") as stream:
                assert (await stream.next()).data
                assert (await client.http.get("/")).status_code == 200
