"""What somebody sees who watches the metrics of a run, in a real browser."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from playwright.async_api import Browser, Route

from adapters.web.browsing import CHROMIUM, FAINTEST, LEFTMOST, ShiftedClock, Visit, real_browser
from aegir_adapters.web import create_app

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

WRITER = """
import json, sys
from aegir_stream.batch import Events
from aegir_stream.events import StepMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink

recorder = Recorder(JournalSink(RunDirectory.at(sys.argv[1])))
for line in sys.stdin:
    event = StepMetrics(ts=1.0, **json.loads(line))
    recorder.emit(Events("step_metrics", (event,), step=event.step))
    recorder.flush(timeout_s=30)
    print("done", flush=True)
recorder.close()
"""
"""Writes the step metrics that it is told on its standard input, and says when they are written."""

PAGE = "/setup/lab/run/0/sae/data"
HOSTILE = [
    "<script>window.evil = 1</script>",
    '"><img src=x onerror="window.evil=1">',
    "a/<b>/c",
    "",
    "/",
    "long/" + "x" * 500,
    "\x00\x1b[31m",
    "__proto__",
]
KNOWN = {
    "stream_mixing/mix_tv": ([0, 0.05], 0.03),
    "stream_mixing/pick_entropy": ([0.95, 1], 0.4),
    "stream_mixing/live_readers_min": ([4, 4], 4),
    "ledger/evictions": ([0, 40], 12),
    "ledger/false_evictions": ([0, 0], 7),
    "loss": (None, 2.5),
}


class Writer:
    """Another process, which writes the metrics of a run."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin
        assert process.stdout
        self.process = process
        self._tell = process.stdin
        self._hear = BufferedByteReceiveStream(process.stdout)

    async def write(self, step: int, bands: dict[str, Any] | None = None, **metrics: Any) -> None:
        """Have the metrics of a step written; return when they are."""
        row = {"step": step, "metrics": metrics, "bands": bands or {}}
        await self._tell.send(json.dumps(row).encode() + b"\n")
        with anyio.fail_after(30):
            assert await self._hear.receive_until(b"\n", 80) == b"done"

    async def end(self) -> None:
        """Have the log closed, and wait until the process has ended."""
        await self._tell.aclose()
        with anyio.fail_after(30):
            await self.process.wait()


@asynccontextmanager
async def writing(run: Path) -> AsyncIterator[Writer]:
    """Start a process that writes metrics; it has ended when the block has."""
    run.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", WRITER, str(run)]
    async with await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None) as process:
        yield Writer(process)


def append(run: Path, step: int, bands: dict[str, Any] | None = None, **metrics: Any) -> None:
    """Append the metrics of a step as any program could."""
    run.mkdir(parents=True, exist_ok=True)
    row = {"step": step, "ts": 1.0, "metrics": metrics, "bands": bands or {}}
    with (run / "step_metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    (run / "progress.jsonl").touch()


class DataVisit(Visit):
    """The Data page, whose time passes when a test says so."""

    async def words(self) -> dict[str, str]:
        """Return the verdict of every metric, by its title."""
        found: dict[str, str] = await self.page.evaluate(
            """Object.fromEntries([...document.querySelectorAll(".panel")].map(panel =>
                [panel.querySelector(".title").textContent,
                 panel.querySelector(".word").textContent]))"""
        )
        return found

    async def value(self, title: str) -> str:
        """Return the newest value of a metric as it is shown."""
        return str(await self.panel(title).locator(".text").inner_text())

    def panel(self, title: str) -> Any:
        """Return the panel of a metric."""
        heading = self.page.get_by_role("heading", name=title, exact=True)
        return self.page.locator(".panel", has=heading)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A real browser."""
    async with real_browser() as browser:
        yield browser


@pytest.fixture
async def visiting(tmp_path: Path, connect: Any, browser: Browser) -> AsyncIterator[Any]:
    """Open the Data page of a run under a root."""
    clock = ShiftedClock()
    async with connect(create_app(tmp_path, clock=clock)) as client:

        async def visit(path: str = PAGE, **options: Any) -> DataVisit:
            context = await browser.new_context(**options)
            visit = DataVisit(await context.new_page(), clock, asks="data.json")
            await visit.go(f"{client.http.base_url}{path}")
            return visit

        yield visit


ALARM, HEALTHY = "alarm: out of range", "healthy"


async def test_an_alarm_comes_and_goes_while_another_process_writes(
    tmp_path: Path, visiting: Any
) -> None:
    """Without a reload: values, charts, marks, summary, new metrics, and the end of the run."""
    band = {"ledger/evictions": [0, 4]}
    async with writing(tmp_path / "lab" / "a") as writer:
        await writer.write(1, band, **{"ledger/evictions": 1.0})
        visit = await visiting()
        await visit.page.evaluate("""() => {
            window.same = document.querySelector(".panel");
            window.before = same.querySelector("svg");
        }""")
        words = [await visit.words()]
        hidden = [await visit.page.locator("#alarms").is_hidden()]

        for step, value in ((2, 9.0), (3, 2.0)):
            await writer.write(step, band, **{"ledger/evictions": value, "a/new": step / 2})
            await visit.poll()
            words.append(await visit.words())
            hidden.append(await visit.page.locator("#alarms").is_hidden())
            assert await visit.value("evictions") == str(int(value))
            assert await visit.value("new") == str(step / 2).removesuffix(".0")
            marked = await visit.page.locator(".panel.alarm circle.newest.alarm").count()
            assert marked == (value > 4)

        groups = await visit.page.locator("h2").all_inner_texts()
        assert await visit.page.evaluate("same === document.querySelector('#metric-0')")
        assert not await visit.page.evaluate("same.contains(before)")
        role = visit.panel("evictions").locator(".word")
        assert await role.get_attribute("role") == "status"

        await writer.end()
        await visit.poll()
        await visit.badge("finished")
        polls = len(visit.polls)
        await visit.pass_time(60 * 60 * 1000)
        await visit.hide(hidden=False)

    assert words == [
        {"evictions": HEALTHY},
        {"evictions": ALARM, "new": ""},
        {"evictions": HEALTHY, "new": ""},
    ]
    assert hidden == [True, False, True]
    assert groups == ["a", "ledger"]
    assert polls == len(visit.polls) == 3
    assert visit.problems == []
    await visit.page.close()


async def test_what_stays_the_same_is_not_touched(tmp_path: Path, visiting: Any) -> None:
    """A poll without news changes nothing in the page, so nothing flickers or is read out again."""
    run = tmp_path / "lab" / "a"
    for name, (band, value) in KNOWN.items():
        append(run, 1, {name: band} if band else {}, **{name: value})
    visit = await visiting()
    await visit.page.evaluate("""() => {
        window.changes = [];
        const watch = new MutationObserver(found => changes.push(...found.map(one =>
            `${one.type} ${one.attributeName} ${one.target.nodeName}.${one.target.className}`)));
        watch.observe(document.querySelector("main"),
            { subtree: true, childList: true, characterData: true, attributes: true });
    }""")
    await visit.poll()
    await visit.poll()
    idle = await visit.page.evaluate("changes")
    append(run, 2, loss=2.25)
    await visit.poll()
    told = await visit.page.evaluate("changes")

    assert idle == []
    assert told
    assert not any("alarm" in change or "healthy" in change for change in told)
    assert visit.problems == []
    await visit.page.close()


async def test_the_focus_stays_while_metrics_come(tmp_path: Path, visiting: Any) -> None:
    """Who reads the list of alarms with the keyboard keeps the place."""
    run = tmp_path / "lab" / "a"
    append(run, 1, {"m": [0, 1]}, m=5.0)
    visit = await visiting()
    await visit.page.get_by_role("link", name="m", exact=True).focus()
    append(run, 2, {"b": [0, 1]}, m=6.0, b=7.0)
    await visit.poll()

    links = await visit.page.locator("#alarms a").all_inner_texts()
    focused = await visit.page.evaluate("document.activeElement.textContent")
    await visit.page.keyboard.press("Enter")
    target = await visit.page.evaluate("document.querySelector(':target .title').textContent")
    assert (links, focused, target) == (["b", "m"], "m", "m")
    await visit.page.close()


async def test_hostile_names_do_nothing(tmp_path: Path, visiting: Any) -> None:
    """Neither those that the page came with nor those that came later."""
    run = tmp_path / "lab" / "a"
    bands = {name: [0, 1] for name in HOSTILE}
    append(run, 1, bands, **dict.fromkeys(HOSTILE[::2], 5.0))
    visit = await visiting(viewport={"width": 390, "height": 900})
    append(run, 2, bands, **dict.fromkeys(HOSTILE, 6.0))
    await visit.poll()
    await visit.poll()

    titles = await visit.page.locator(".panel h3").all_inner_texts()
    wide = await visit.page.evaluate("document.documentElement.scrollWidth")
    assert len(titles) == len(HOSTILE)
    assert "<script>window.evil = 1<" not in titles
    assert any("<img" in title for title in titles)
    assert await visit.page.locator("main :is(script, img)").count() == 0
    assert await visit.page.evaluate("window.evil") is None
    assert wide <= 390
    assert visit.problems == []
    await visit.page.close()


async def test_values_stay_when_the_server_fails(tmp_path: Path, visiting: Any) -> None:
    """What was last seen stays, a line says that it is not fresh, and the page goes on asking."""
    append(tmp_path / "lab" / "a", 1, loss=0.5)
    visit = await visiting()

    async def fail(route: Route) -> None:
        await route.fulfill(status=500, body="{}")

    await visit.page.route("**/data.json", fail)
    await visit.pass_time()
    await visit.page.get_by_role("alert").wait_for()
    assert await visit.value("loss") == "0.5"

    await visit.page.unroute("**/data.json")
    append(tmp_path / "lab" / "a", 2, loss=0.75)
    await visit.poll()
    assert await visit.value("loss") == "0.75"
    assert await visit.page.locator("#lost").is_hidden()
    await visit.page.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_and_is_legible(
    tmp_path: Path, visiting: Any, width: int, scheme: str
) -> None:
    """Nothing sticks out at either width, and text stands out from its ground in either scheme."""
    run = tmp_path / "lab" / ("a-run-of-a-rather-long-name-" * 4)
    for step in range(30):
        for name, (band, value) in KNOWN.items():
            swing = value * (1 + 0.2 * ((step * 7) % 5 - 2)) if band != [4, 4] else value
            append(run, step * 1000, {name: band} if band else {}, **{name: swing})
    visit = await visiting(viewport={"width": width, "height": 900}, color_scheme=scheme)

    wide = await visit.page.evaluate("document.documentElement.scrollWidth")
    left = await visit.page.evaluate(LEFTMOST)
    worst = await visit.page.evaluate(FAINTEST)
    height = await visit.page.evaluate(
        "document.querySelector('svg.scalar text').getBoundingClientRect().height"
    )

    assert wide <= width
    assert left >= 0
    assert worst > 4.5
    assert height > 10
    assert visit.problems == []
    await visit.page.close()
