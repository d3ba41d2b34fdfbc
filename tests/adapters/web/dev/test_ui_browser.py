"""What somebody sees who works on the pages, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect
from starlette.applications import Starlette

from adapters.web.browsing import CHROMIUM, real_browser
from adapters.web.dev.running import RunningUI
from adapters.web.test_sweeps import Starter
from aegir_adapters.web import create_app, serve
from aegir_adapters.web.dev import create_ui
from aegir_adapters.web.page import TEMPLATES

PATIENCE_MS = 60_000

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

HAS_CELLS = """count => Bokeh.documents.some(document =>
    [...document._all_models.values()].some(model => model.type === 'ServerSentDataSource'
        && model.data.mark.filter(m => m === 'cell').length === count))"""
HAS_TITLE = """text => Bokeh.documents.some(document =>
    [...document._all_models.values()].some(
        model => model.type === 'Title' && model.text === text))"""
SET_HIDDEN = """hidden => {
    Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
}"""

Connect = Callable[[Starlette], AbstractAsyncContextManager[Any]]
Start = Callable[..., AbstractAsyncContextManager[RunningUI]]


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A real browser."""
    async with real_browser() as browser:
        yield browser


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page of a browser, which waits as long as a machine with much to do may take."""
    context = await browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    yield await context.new_page()
    await context.close()


def edit(path: Path, old: str, new: str) -> None:
    """Change a file."""
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


async def test_working_on_the_pages_of_another_checkout(
    run: Any, checkout: Path, start_ui: Start, page: Page
) -> None:
    """Live data of the gateway in pages of the checkout, which reload as their files are saved."""
    web = checkout / "adapters" / "aegir_adapters" / "web"
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    await run.step(1)
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with start_ui(gateway.address, "--checkout", checkout) as ui:
            await page.goto(ui.address)
            await page.wait_for_function(HAS_CELLS, arg=2)
            await run.step(2)
            await page.wait_for_function(HAS_CELLS, arg=4)
            assert problems == []

            edit(web / "templates" / "page.html", "Over time", "Template edited")
            await page.get_by_role("heading", name="Template edited").wait_for()
            await page.wait_for_function(HAS_CELLS, arg=4)

            edit(web / "static" / "page.css", "h1 {", "h1 { text-transform: uppercase;")
            await expect(page.locator("h1")).to_have_css(
                "text-transform", "uppercase", timeout=PATIENCE_MS
            )

            edit(web / "plots.py", "Mean top activation", "Python edited")
            await ui.tells("plots.py changed")
            await page.wait_for_function(HAS_TITLE, arg="Python edited")
            await run.step(3)
            await page.wait_for_function(HAS_CELLS, arg=6)


async def test_a_page_that_nobody_sees_misses_nothing(
    run: Any, connect: Connect, page: Page, tmp_path: Path
) -> None:
    """It holds no connection while it is hidden, and loads again when it is seen."""
    templates = shutil.copytree(TEMPLATES, tmp_path / "templates")
    await run.step(1)
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with connect(create_ui(gateway.address, templates=templates)) as client:
            await page.goto(str(client.http.base_url))
            await page.get_by_role("heading", name="Over time").wait_for()
            async with page.expect_event("requestfailed", lambda r: "changes" in r.url):
                await page.evaluate(SET_HIDDEN, arg=True)
            edit(templates / "page.html", "Over time", "Edited meanwhile")
            await page.evaluate(SET_HIDDEN, arg=False)
            await page.get_by_role("heading", name="Edited meanwhile").wait_for()


async def test_a_broken_template_heals_by_itself(
    run: Any, connect: Connect, page: Page, tmp_path: Path
) -> None:
    """The mistake is shown in place of the page, and the page in place of the mistake."""
    templates = shutil.copytree(TEMPLATES, tmp_path / "templates")
    await run.step(1)
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with connect(create_ui(gateway.address, templates=templates)) as client:
            await page.goto(str(client.http.base_url))
            edit(templates / "page.html", "<h1>{{ status.name }}", "<h1>{{ status.nick }}")
            await page.get_by_role("alert").get_by_text("nick").wait_for()
            edit(templates / "page.html", "status.nick", "status.name")
            await page.get_by_role("heading", name="run", exact=True).wait_for()


async def test_a_gateway_that_goes_and_comes_back(
    run: Any, connect: Connect, browser: Browser, page: Page
) -> None:
    """An open page says that it is alone and goes on later; a new one loads when it can."""
    other = await page.context.new_page()
    await run.step(1)
    app = create_app(run.directory.cfg)
    gateway = serve(app, port=0)
    async with connect(create_ui(gateway.address)) as client:
        with gateway:
            await page.goto(str(client.http.base_url))
            await page.wait_for_function(HAS_CELLS, arg=2)
        await page.get_by_text("The server does not answer").wait_for()
        await other.goto(str(client.http.base_url))
        await other.get_by_role("heading", name="The gateway does not answer").wait_for()
        shown = await other.locator("body").inner_text()

        await run.step(2)
        with serve(create_app(run.directory.cfg), port=gateway.port):
            await other.get_by_role("heading", name="run", exact=True).wait_for()
            await page.get_by_text("The server does not answer").wait_for(state="hidden")
            await page.wait_for_function(HAS_CELLS, arg=4)

    assert gateway.address in shown
    assert "AEGIR_GATEWAY_URL" in shown
    assert "just gateway" in shown


async def test_a_form_is_sent_from_the_pages_of_another_checkout(
    tmp_path: Path, connect: Connect, page: Page
) -> None:
    """A browser sends it under the page's own policy, and comes back to where the gateway says."""
    (tmp_path / "checkpoint-4").mkdir()
    starter = Starter()
    with serve(create_app(tmp_path, sweep_starter=starter), port=0) as gateway:
        async with connect(create_ui(gateway.address)) as client:
            await page.goto(f"{client.http.base_url}/sweeps")
            await page.fill("#prompt", "41 62 =>")
            await page.click("text=Start the sweep")
            await expect(page.locator("#trouble-answer")).to_be_visible()
            await page.fill("#answer", "SPACE")
            await page.press("#answer", "Enter")
            await expect(page.locator("#making")).to_contain_text("is being made")
            assert page.url == f"{client.http.base_url}/sweeps"
            await page.click("text=Cancel it")
            await expect(page.locator("#making")).to_contain_text("is being made")
    assert [order.answer for _, order in starter.orders] == ["SPACE"]
    assert starter.stopped == [tmp_path]
