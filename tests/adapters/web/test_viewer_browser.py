from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from playwright.async_api import Browser, Page, Route

from adapters.web.browsing import CHROMIUM, FAINTEST, LEFTMOST, ShiftedClock, Visit, real_browser
from aegir_adapters.web import create_app

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

FEEDER = """
import json, sys
from aegir_stream.progress import ProgressFeed

feed = ProgressFeed(sys.argv[1], total=10)
for line in sys.stdin:
    does, row = json.loads(line)
    getattr(feed, does)(**row)
    feed._recorder.flush(timeout_s=30)
    print("done", flush=True)
"""
"""Calls the feed as it is told on its standard input, and says when that is on the disk."""

ANIMATION = "getComputedStyle(document.getElementById('badge'), '::before').animationName"
VIEWER = "/setup/lab/run/0"


class Feeder:
    """Another process, which writes a feed."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin
        assert process.stdout
        self.process = process
        self._tell = process.stdin
        self._hear = BufferedByteReceiveStream(process.stdout)

    async def tell(self, does: str, **row: Any) -> None:
        """Have a method of the feed called; return when what it does is on the disk."""
        await self._tell.send(json.dumps([does, row]).encode() + b"\n")
        with anyio.fail_after(30):
            assert await self._hear.receive_until(b"\n", 80) == b"done"


@asynccontextmanager
async def feeding(run: Path) -> AsyncIterator[Feeder]:
    """Start a process that feeds a run; it has ended when the block has."""
    run.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", FEEDER, str(run)]
    async with await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None) as process:
        yield Feeder(process)


class Viewer(Visit):
    """The page of a run, whose time passes when a test says so."""

    def __init__(self, page: Page, clock: ShiftedClock) -> None:
        super().__init__(page, clock, asks="live.json")

    async def fact(self, term: str, text: str) -> None:
        """Wait until a figure has a text."""
        tile = self.page.locator("#facts > div", has=self.page.locator("dt", has_text=term))
        await tile.locator("dd", has_text=text).wait_for()

    async def chart(self) -> str:
        """Return the chart as it is shown."""
        return str(await self.page.locator("#chart").inner_html())


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A real browser."""
    async with real_browser() as browser:
        yield browser


@pytest.fixture
async def viewing(tmp_path: Path, connect: Any, browser: Browser) -> AsyncIterator[Any]:
    """Open the page of a run under a root."""
    clock = ShiftedClock()
    async with connect(create_app(tmp_path, clock=clock)) as client:

        async def view(path: str = VIEWER, **options: Any) -> Viewer:
            context = await browser.new_context(**options)
            viewer = Viewer(await context.new_page(), clock)
            await viewer.go(f"{client.http.base_url}{path}")
            return viewer

        yield view


async def test_a_run_fed_by_another_process_is_shown_as_it_goes(
    tmp_path: Path, viewing: Any
) -> None:
    """Badge, figures and chart follow without a reload; the end is shown, and nobody asks again."""
    async with feeding(tmp_path / "lab" / "a") as feeder:
        await feeder.tell("append", iter=1, score=0.25)
        viewer = await viewing()
        await viewer.page.evaluate("window.same = true")
        await viewer.badge("live")
        pulse = await viewer.page.evaluate(ANIMATION)
        charts = [await viewer.chart()]

        for iteration, score in ((2, 0.5), (3, 0.375)):
            await feeder.tell(
                "append", iter=iteration, score=score, cost=iteration * 1.5, calls=iteration
            )
            await viewer.poll()
            await viewer.fact("Iteration", f"{iteration} of 10")
            await viewer.fact("Newest score", str(score))
            charts.append(await viewer.chart())
        await viewer.fact("Best score", "0.5")
        await viewer.fact("Cost", "4.5")

        await feeder.tell("close")
        await viewer.poll()
        await viewer.badge("finished")
        polls = len(viewer.polls)
        await viewer.pass_time(60 * 60 * 1000)
        await viewer.hide(hidden=False)

    assert pulse == "pulse"
    assert len(set(charts)) == 3
    assert polls == len(viewer.polls) == 3
    assert await viewer.page.evaluate("window.same")
    assert await viewer.page.evaluate(ANIMATION) == "none"
    assert viewer.problems == []
    await viewer.page.close()


async def test_a_killed_process_is_a_crash(tmp_path: Path, viewing: Any) -> None:
    """SIGKILL leaves no end marker; the page says crashed, why, and asks no more."""
    async with feeding(tmp_path / "lab" / "a") as feeder:
        viewer = await viewing_when_there(viewing, feeder)
        feeder.process.send_signal(signal.SIGKILL)
        await feeder.process.wait()
        await viewer.poll()
        await viewer.badge("crashed")
        await viewer.page.get_by_text("left no end marker").wait_for()
        await viewer.pass_time(60_000)

    assert len(viewer.polls) == 1
    assert viewer.problems == []
    await viewer.page.close()


async def test_a_run_without_rows_is_live(tmp_path: Path, viewing: Any) -> None:
    """A process that has begun and not yet finished an iteration is alive."""
    async with feeding(tmp_path / "lab" / "a") as feeder:
        viewer = await viewing_when_there(viewing, feeder)
        await viewer.badge("live")
        await viewer.page.get_by_text("no scores yet").wait_for()
        await viewer.poll()
        await viewer.badge("live")

        await feeder.tell("append", iter=1, score=0.5)
        await viewer.poll()
        await viewer.fact("Newest score", "0.5")

    assert viewer.problems == []
    await viewer.page.close()


async def viewing_when_there(viewing: Any, feeder: Feeder) -> Viewer:
    """Open the page of a run whose process has begun and written no row."""
    await feeder.tell("statistics")
    viewer: Viewer = await viewing()
    return viewer


async def test_a_silent_run_is_stalled_until_its_next_line(tmp_path: Path, viewing: Any) -> None:
    """Rows that some program appended prove no process: silence is stalled, and ends with a row."""
    run = tmp_path / "lab" / "a"
    append(run, iter=1, score=0.5)
    long_ago = time.time() - 7200
    for path in (run / "progress.jsonl", run):
        os.utime(path, (long_ago, long_ago))

    viewer = await viewing()
    await viewer.badge("stalled")
    await viewer.poll()
    append(run, iter=2, score=0.6)
    await viewer.poll()
    await viewer.badge("live")

    assert await viewer.page.locator("#note").is_hidden()
    assert viewer.problems == []
    await viewer.page.close()


def append(run: Path, **row: Any) -> None:
    """Append a row as any program could."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / "progress.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


async def test_nobody_asks_while_the_tab_is_hidden(tmp_path: Path, viewing: Any) -> None:
    """A hidden tab asks nothing; shown again, it asks at once, and then as before."""
    append(tmp_path / "lab" / "a", iter=1, score=0.5)
    viewer = await viewing()
    await viewer.hide(hidden=True)
    await viewer.pass_time(60_000)
    hidden = len(viewer.polls)

    append(tmp_path / "lab" / "a", iter=2, score=0.75)
    async with viewer.page.expect_response("**/live.json"):
        await viewer.hide(hidden=False)
    await viewer.fact("Newest score", "0.75")
    await viewer.poll()

    assert hidden == 0
    assert len(viewer.polls) == 2
    assert viewer.problems == []
    await viewer.page.close()


async def test_questions_never_overlap(tmp_path: Path, viewing: Any) -> None:
    """While an answer is awaited, nothing is asked, however much time passes."""
    append(tmp_path / "lab" / "a", iter=1, score=0.5)
    viewer = await viewing()
    asked, may_answer = anyio.Event(), anyio.Event()

    async def hold(route: Route) -> None:
        asked.set()
        await may_answer.wait()
        await route.continue_()

    await viewer.page.route("**/live.json", hold)
    await viewer.pass_time()
    await asked.wait()
    await viewer.pass_time(20_000)
    await viewer.hide(hidden=True)
    await viewer.hide(hidden=False)
    while_waiting = len(viewer.polls)
    async with viewer.page.expect_response("**/live.json"):
        may_answer.set()
    await viewer.page.unroute("**/live.json")
    await viewer.poll()

    assert while_waiting == 1
    assert len(viewer.polls) == 2
    await viewer.page.close()


@pytest.mark.parametrize("failure", [404, 500, "no JSON", "abort"])
async def test_values_stay_when_the_server_fails(
    tmp_path: Path, viewing: Any, failure: int | str
) -> None:
    """What was last seen stays, a line says that it is not fresh, and the page goes on asking."""
    append(tmp_path / "lab" / "a", iter=1, score=0.5)
    viewer = await viewing()

    async def fail(route: Route) -> None:
        if failure == "abort":
            await route.abort()
        elif failure == "no JSON":
            await route.fulfill(status=200, body="<html>")
        else:
            await route.fulfill(status=int(failure), body="{}")

    await viewer.page.route("**/live.json", fail)
    await viewer.pass_time()
    await viewer.page.get_by_role("alert").wait_for()
    await viewer.fact("Newest score", "0.5")
    await viewer.badge("live")

    await viewer.page.unroute("**/live.json")
    append(tmp_path / "lab" / "a", iter=2, score=0.75)
    await viewer.poll()
    await viewer.fact("Newest score", "0.75")
    assert await viewer.page.locator("#lost").is_hidden()
    await viewer.page.close()


async def test_a_chart_runs_nothing(tmp_path: Path, viewing: Any) -> None:
    """Were there ever a script or a handler in a chart, the page would not run it."""
    append(tmp_path / "lab" / "a", iter=1, score=0.5)
    viewer = await viewing()

    async def inject(route: Route) -> None:
        answer = await route.fetch()
        body = await answer.json()
        evil = "<script>window.evil = 1</script><g onclick='window.evil = 1' onload='evil = 1'/>"
        body["chart"] = (
            f'<svg onload="window.evil = 1">{evil}<image href="x" onerror="evil=1"/></svg>'
        )
        await route.fulfill(response=answer, json=body)

    await viewer.page.route("**/live.json", inject)
    await viewer.poll()
    await viewer.page.locator("#chart image").wait_for(state="attached")

    assert await viewer.page.evaluate("window.evil") is None
    await viewer.page.close()


async def test_who_wants_no_motion_has_none(tmp_path: Path, viewing: Any) -> None:
    """The badge does not pulse for those who asked their system for less motion."""
    append(tmp_path / "lab" / "a", iter=1, score=0.5)
    viewer = await viewing(reduced_motion="reduce")

    await viewer.badge("live")

    assert await viewer.page.evaluate(ANIMATION) == "none"
    await viewer.page.close()


@pytest.mark.parametrize("path", ["/", VIEWER])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_pages_fit_and_are_legible(
    tmp_path: Path, viewing: Any, path: str, width: int, scheme: str
) -> None:
    """Nothing sticks out at either width, and text stands out from its ground in either scheme."""
    name = "a-run-of-a-rather-long-name-" * 4
    for iteration in range(30):
        append(tmp_path / "lab" / name, iter=iteration, score=-iteration / 1e7, cost=1e9)
    viewport = {"width": width, "height": 900}

    viewer = await viewing(path, viewport=viewport, color_scheme=scheme)
    wide = await viewer.page.evaluate("document.documentElement.scrollWidth")
    left = await viewer.page.evaluate(LEFTMOST)
    worst = await viewer.page.evaluate(FAINTEST)

    assert wide <= width
    assert left >= 0
    assert worst > 4.5
    assert viewer.problems == []
    await viewer.page.close()


async def test_the_keyboard_reaches_everything(tmp_path: Path, viewing: Any) -> None:
    """From the list, the keyboard alone leads to a run, to its setup, and back."""
    append(tmp_path / "lab" / "a", iter=1, score=0.5)
    viewer = await viewing("/")

    for stops in (1, 2, 1):
        for _ in range(stops):
            await viewer.page.keyboard.press("Tab")
        async with viewer.page.expect_navigation():
            await viewer.page.keyboard.press("Enter")

    assert await viewer.page.title() == "Runs - aegir-stream"
    assert viewer.problems == []
    await viewer.page.close()
