"""A real browser in which time passes when a test says so."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, Page, Request, async_playwright

from aegir_stream.clock import SystemClock

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
POLL_MS = 3000

LEFTMOST = """Math.min(0, ...[...document.querySelectorAll("text")]
    .map(text => text.getBoundingClientRect().x))"""
"""How far a text of a drawing sticks out of the page to the left, as a negative number."""

FAINTEST = """() => {
    const luminance = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        const color = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
        return color === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : color;
    };
    const texts = [...document.querySelectorAll("body *")].filter(element =>
        [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    return Math.min(...texts.map(element => {
        const style = getComputedStyle(element);
        const ink = element instanceof SVGElement ? style.fill : style.color;
        const [low, high] = [luminance(ink), luminance(ground(element))].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }));
}"""
"""The lowest contrast ratio of any text with its ground (WCAG 2.2)."""


@asynccontextmanager
async def real_browser() -> AsyncIterator[Browser]:
    """Start a browser; it has ended when the block has."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


class ShiftedClock(SystemClock):
    """The system's clock, moved on by as much as a test says."""

    shift_s = 0.0

    def time(self) -> float:
        """Return wall-clock seconds since the epoch."""
        return super().time() + self.shift_s

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        return super().monotonic() + self.shift_s


class Visit:
    """A page that asks for news, whose time passes when a test says so.

    Args:
        page: the page.
        clock: the server's clock.
        asks: what the page asks for, as the end of an address.

    Attributes:
        polls: addresses that were asked for.
        problems: what went wrong in the page.
    """

    def __init__(self, page: Page, clock: ShiftedClock, *, asks: str) -> None:
        self.page = page
        self.clock = clock
        self.asks = f"**/{asks}"
        self.polls: list[str] = []
        self.problems: list[str] = []
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)

    def _note(self, request: Request) -> None:
        if request.url.endswith(self.asks.removeprefix("**")):
            self.polls.append(request.url)

    async def go(self, address: str) -> None:
        """Stop the time of the page, and load it."""
        await self.page.clock.install(time=0)
        await self.page.clock.pause_at(1000)
        await self.page.goto(address)

    async def pass_time(self, milliseconds: int = POLL_MS) -> None:
        """Let time pass, for the page and for the server."""
        self.clock.shift_s += milliseconds / 1000
        await self.page.clock.run_for(milliseconds)

    async def poll(self) -> None:
        """Let time pass until the page asks, and return when it has shown the answer."""
        async with self.page.expect_response(self.asks) as response:
            await self.pass_time()
        await (await response.value).finished()
        # It waits for the next time only when it has shown this one.
        await self.page.wait_for_function("!asking")

    async def badge(self, word: str) -> None:
        """Wait until the badge says a word."""
        await self.page.locator("#badge", has_text=word).wait_for()

    async def hide(self, *, hidden: bool) -> None:
        """Put the tab behind another one, or back."""
        await self.page.evaluate(
            """hidden => {
                Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )
