from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from playwright.async_api import Browser, Page
from starlette.applications import Starlette
from starlette.routing import Mount

from adapters.web.browsing import CHROMIUM, real_browser
from aegir_adapters.web import create_app

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

HAS_MARKS = """([mark, count]) => Bokeh.documents.some(document =>
    [...document._all_models.values()].some(model => model.type === 'ServerSentDataSource'
        && model.data.mark.filter(m => m === mark).length === count))"""
PAINTED = """() => {
    const roots = [document];
    for (const root of roots)
        for (const element of root.querySelectorAll('*'))
            if (element.shadowRoot) roots.push(element.shadowRoot);
    const colours = new Set();
    for (const canvas of roots.flatMap(root => [...root.querySelectorAll('canvas')])) {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length; i += 4) colours.add(data.slice(i, i + 4).join());
    }
    return colours.size;
}"""


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A real browser."""
    async with real_browser() as browser:
        yield browser


async def open_page(browser: Browser, url: str, **options: Any) -> tuple[Page, list[str]]:
    """Open a page, and a list that collects what goes wrong in it."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("requestfailed", lambda r: problems.append(f"{r.url} {r.failure}"))
    await page.goto(url)
    return page, problems


async def test_the_page_draws_and_follows_the_run(run: Any, connect: Any, browser: Browser) -> None:
    """Charts, table and badge show what was written before and what is written now."""
    await run.step(1)
    app = Starlette(routes=[Mount("/lab", create_app(run.directory.cfg))])
    async with connect(app) as client:
        page, problems = await open_page(browser, f"{client.http.base_url}/lab/")
        await page.wait_for_function(HAS_MARKS, arg=["cell", 2])
        await run.step(2)
        await run.save(2)
        await page.wait_for_function(HAS_MARKS, arg=["cell", 4])
        await page.wait_for_function(HAS_MARKS, arg=["reward", 2])
        await page.get_by_role("cell", name="checkpoint-2", exact=True).wait_for()
        badge = await page.get_by_role("status").inner_text()
        colours = await page.evaluate(PAINTED)
        await page.close()

    assert problems == []
    assert "live" in badge
    assert colours > 10


async def test_a_reconnect_doubles_nothing(run: Any, connect: Any, browser: Browser) -> None:
    """When the stream breaks, the browser connects again and the picture is the same, not twice."""
    await run.step(1)
    app = create_app(run.directory.cfg)
    async with connect(app) as client:
        page, _ = await open_page(browser, str(client.http.base_url))
        await page.wait_for_function(HAS_MARKS, arg=["cell", 2])

        app.state.stopping.stop()
        async with client.open("/api/view/overview/stream") as stream:
            await stream.rest()
        app.state.stopping.begin()
        await run.step(2)
        await page.wait_for_function(HAS_MARKS, arg=["cell", 4])
        await page.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_and_is_legible(
    run: Any, connect: Any, browser: Browser, width: int, scheme: str
) -> None:
    """Nothing sticks out at either width, text stands out from its ground in either scheme."""
    await run.step(1)
    async with connect(create_app(run.directory.cfg)) as client:
        page, problems = await open_page(
            browser,
            str(client.http.base_url),
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
        )
        await page.wait_for_function(HAS_MARKS, arg=["reward", 1])
        wide = await page.evaluate("document.documentElement.scrollWidth")
        ink, paper = await page.evaluate(
            "['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k])"
        )
        await page.close()

    assert problems == []
    assert wide <= width
    assert contrast(ink, paper) > 7


async def test_the_keyboard_reaches_everything(run: Any, connect: Any, browser: Browser) -> None:
    """The first stop leads past the charts, to the table, which can be scrolled by keys."""
    await run.step(1)
    await run.save(1)
    async with connect(create_app(run.directory.cfg)) as client:
        page, _ = await open_page(browser, str(client.http.base_url))
        await page.keyboard.press("Tab")
        first = await page.evaluate("document.activeElement.textContent")
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        second = await page.evaluate("document.activeElement.getAttribute('role')")
        await page.close()

    assert first == "Skip to the checkpoints"
    assert second == "region"


async def test_a_server_that_is_gone_is_told(run: Any, connect: Any, browser: Browser) -> None:
    """The page says when what it shows is no longer fresh."""
    async with connect(create_app(run.directory.cfg)) as client:
        page, _ = await open_page(browser, str(client.http.base_url))
        await page.get_by_role("status").wait_for()
    with anyio.fail_after(20):
        await page.get_by_role("alert").wait_for()
    await page.close()


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two CSS colours (WCAG 2.2)."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    channels = [int(c) / 255 for c in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
