"""What somebody sees who watches a sweep, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.async_api import Page, expect

from adapters.web.browsing import CHROMIUM, FAINTEST, LEFTMOST, real_browser
from adapters.web.test_sweeps import CELLS, STARTED, Starter
from aegir_adapters.web import Starting, SweepOrder, create_app, serve
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import SweepEnded
from aegir_stream.sweep_log import SweepLog

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

HOSTILE = ("<script>window.evil=1</script>", '"><img src=x onerror="window.evil=1">', "\x00\x1b[1m")
WIDE = 90
SEEN = FAINTEST.replace("body *", "body *:not(title)")
"""Titles of cells are shown by the browser, in its own colours."""


@asynccontextmanager
async def visit(run: RunDirectory, starter: Starter, **options: Any) -> AsyncIterator[Page]:
    """Open a page on a server that shows the run; nothing may go wrong in it."""
    with serve(create_app(run.cfg, sweep_starter=starter), port=0) as server:
        async with real_browser() as browser:
            page = await browser.new_page(base_url=server.address, **options)
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            yield page
            assert problems == []
            assert await page.evaluate("window.evil") is None


def record(run: RunDirectory, tokens: tuple[str, ...]) -> None:
    """Record a sweep of a prompt."""
    positions = tuple(range(len(tokens)))
    started = msgspec.structs.replace(
        STARTED, tokens=tokens, clean_tokens=tokens[::-1], positions=positions,
        clean_positions=positions, answer=tokens[0], warnings=tokens[:1],
    )  # fmt: skip
    with SweepLog(run, started) as log:
        log.append(CELLS)
        log.end(SweepEnded(status="failed", reason=tokens[0]))


async def test_a_page_fills_while_it_is_looked_at(tmp_path: Path) -> None:
    """Cells take their colours where they are, the frame moves, and the end is told."""
    run = RunDirectory.at(tmp_path)
    with SweepLog(run, STARTED) as log:
        async with visit(run, Starter()) as page:
            await page.goto("/sweeps/00001")
            await expect(page.locator("#badge")).to_have_text("running")
            await expect(page.locator("rect.p")).to_have_count(12)
            await page.evaluate("window.kept = document.getElementById('h0-1-2')")
            log.append(CELLS[:6])
            await expect(page.locator("rect.p")).to_have_count(6)
            await expect(page.locator("#h0-1-2")).to_have_class("w7")
            await expect(page.locator("#said-0")).to_contain_text("most at layer 1, position 2")
            await expect(page.locator("#cells")).to_have_text("6 of 12")
            assert await page.evaluate("window.kept.isConnected")
            frame = await page.locator("#h0-best").bounding_box()
            cell = await page.locator("#h0-1-2").bounding_box()
            assert frame
            assert cell
            assert abs(frame["x"] - cell["x"]) < 3
            log.append(CELLS[6:])
            log.end(SweepEnded(status="finished", noise_floor=0.125))
            await expect(page.locator("#badge")).to_have_text("finished")
            await expect(page.locator("#facts")).to_contain_text("0.125")
            await expect(page.locator("rect.p")).to_have_count(0)


async def test_a_form_is_sent_and_its_errors_are_shown(tmp_path: Path) -> None:
    """A browser sends it under the page's own policy, and what was typed is not lost."""
    (tmp_path / "checkpoint-4").mkdir()
    starter = Starter()
    async with visit(RunDirectory.at(tmp_path), starter) as page:
        await page.goto("/")
        await page.click("text=Sweeps")
        await page.fill("#prompt", "41 62 =>")
        await page.click("text=Start the sweep")
        await expect(page.locator("#trouble-answer")).to_be_visible()
        await expect(page.locator("#prompt")).to_have_value("41 62 =>")
        await page.fill("#answer", "SPACE")
        await page.press("#answer", "Enter")
        await expect(page.locator("#making")).to_contain_text("is being made")
        assert [order.answer for _, order in starter.orders] == ["SPACE"]
        await page.click("text=Cancel it")
        await page.wait_for_url("**/sweeps")
        assert starter.stopped == [tmp_path]
        starter.made = Starting(
            order=SweepOrder(prompt="41", answer="X"), running=False, error="Expected `foil` to be"
        )
        await expect(page.locator("#trouble-foil")).to_be_visible(timeout=20_000)
        await expect(page.locator("#answer")).to_have_value("X")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_and_are_legible(tmp_path: Path, width: int, scheme: Any) -> None:
    """However long and hostile the tokens: nothing sticks out, runs, or is too faint to read."""
    run = RunDirectory.at(tmp_path)
    record(run, HOSTILE)
    record(run, tuple(f"token {at} {'x' * 40}" for at in range(WIDE)))
    size: Any = {"width": width, "height": 900}
    async with visit(run, Starter(), viewport=size, color_scheme=scheme) as page:
        for path in ("/sweeps", "/sweeps/00001", "/sweeps/00002"):
            await page.goto(path)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate(SEEN) >= 4.5, path
            assert await page.evaluate(LEFTMOST) >= 0
