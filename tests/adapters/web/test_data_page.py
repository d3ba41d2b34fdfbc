from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import anyio
import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from aegir_adapters.web import create_app
from aegir_adapters.web.data_page import DataPage
from aegir_adapters.web.dev import create_ui
from aegir_adapters.web.drawing import PAGE_TYPE
from aegir_adapters.web.metrics_reader import MetricsReader
from aegir_adapters.web.page import Page
from aegir_adapters.web.server import serve
from aegir_stream.progress import ProgressFeed
from aegir_stream.testing import ManualClock

pytestmark = pytest.mark.anyio

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a/b/c",
    "",
    "/",
    "x" * 5_000,
    "{{ 7 * 7 }}",
    "\x00\x1b[31m",
    "constructor",
    "__proto__",
]
BASE = "/setup/lab/run/0/sae"


def append(run: Path, step: int, *, bands: dict[str, Any] | None = None, **metrics: Any) -> None:
    """Append the metrics of a step, as another program would."""
    run.mkdir(parents=True, exist_ok=True)
    row = {"step": step, "ts": 1.0, "metrics": metrics, "bands": bands or {}}
    with (run / "step_metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@asynccontextmanager
async def asking(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application, without a server between them."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands at the present, as files bear the present's times."""
    return ManualClock(time.time())


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A run under a root, with a progress feed."""
    run = tmp_path / "root" / "lab" / "a"
    run.mkdir(parents=True)
    (run / "progress.jsonl").write_text('{"iter": 1, "score": 0.5}\n')
    return run


@pytest.fixture
async def http(lab: Path, clock: ManualClock) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the viewer of a root."""
    async with asking(create_app(lab.parents[1], clock=clock)) as http:
        yield http


def refuse(token: str) -> None:
    """Fail on what JSON does not have."""
    raise AssertionError(token)


async def data(http: httpx.AsyncClient, base: str = BASE) -> Any:
    """Return the body of `data.json`, which has the same keys and no bad number, whatever is."""
    answer = await http.get(f"{base}/data.json")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    body = json.loads(answer.text, parse_constant=refuse)
    assert set(body) == {"status", "badge", "panels"}
    keys = {"step", "healthy", "unjudged", "alarms", "groups", "summary", "note"}
    assert set(body["panels"]) == keys
    return body


async def test_a_run_that_goes_on(http: httpx.AsyncClient, lab: Path, clock: ManualClock) -> None:
    """An alarm is raised and ends as values come, in the answer and in the page."""
    bands = {"ledger/evictions": [0, 4]}
    found = []
    for step, value in ((1, 3.0), (2, 9.0), (3, None), (4, 4.0)):
        append(lab, step, bands=bands, **{"ledger/evictions": value, "loss": 0.1})
        clock.advance(1)
        body = await data(http)
        page = (await http.get(f"{BASE}/data")).text
        panels = body["panels"]
        alarms = [alarm["name"] for alarm in panels["alarms"]]
        marked = re.findall(r'class="word (\w*)" role="status">([^<]*)<', page)
        found.append((panels["step"], alarms, marked[0]))
        assert body["status"] == "active"
        assert panels["summary"] in page
        assert ("alarm: out of" in page) == bool(alarms)

    alarm = ["ledger/evictions"], ("alarm", "alarm: out of range")
    healthy: Any = [], ("healthy", "healthy")
    assert found == [(1, *healthy), (2, *alarm), (3, *alarm), (4, *healthy)]


async def test_a_run_without_metrics_has_a_page_and_no_link_to_it(
    http: httpx.AsyncClient, lab: Path, clock: ManualClock
) -> None:
    """The page says so; it is linked as soon as there is something."""
    assert (await data(http))["panels"]["summary"] == "No metrics were written yet."
    assert (await http.get(f"{BASE}/data")).status_code == 200
    for path in ("/setup/lab/run/0", f"{BASE}/"):
        assert "/data" not in (await http.get(path)).text

    append(lab, 1, loss=0.5)
    clock.advance(1)

    for path in ("/setup/lab/run/0", f"{BASE}/", f"{BASE}/live"):
        page = await http.get(path)
        link = re.findall('href="([^"]*data)"', page.text)[0]
        answer = await http.get(urljoin(str(page.url), link))
        assert "<h3" in answer.text


async def test_every_link_of_the_page_leads_somewhere(http: httpx.AsyncClient, lab: Path) -> None:
    """Back to the run and to its live viewer, too."""
    append(lab, 1, loss=0.5)
    page = await http.get(f"{BASE}/data")

    links = re.findall(r'(?:href|src|data-live)="([^"]+)"', page.text)
    found = {urljoin(str(page.url), link) for link in links if not link.startswith("data:")}
    for link in found:
        assert (await http.get(link)).status_code == 200, link
    assert {f"http://localhost{BASE}/", "http://localhost/setup/lab/run/0"} <= found


async def test_a_run_alone_has_the_page_at_its_root(lab: Path, clock: ManualClock) -> None:
    """Beside its other routes, with the same links."""
    append(lab, 1, loss=0.5)
    async with asking(create_app(lab, clock=clock)) as http:
        first = await http.get("/")
        page = await http.get("/data")
        body = await data(http, "")
        viewer = re.findall('href="(setup/[^"]+)"', page.text)[0]
        linked = await http.get(f"/{viewer}")

    assert 'href="data"' in first.text
    assert '<a href="./">a</a>' in page.text
    assert linked.status_code == 200
    assert body["panels"]["groups"][0]["panels"][0]["text"] == "0.5"


async def test_a_directory_that_is_not_there_is_waited_for(
    tmp_path: Path, clock: ManualClock
) -> None:
    """A page that was opened too early goes on asking."""
    async with asking(create_app(tmp_path / "later", clock=clock)) as http:
        before = await data(http, "")
        append(tmp_path / "later", 1, loss=0.5)
        clock.advance(1)
        after = await data(http, "")

    assert (before["status"], before["badge"]) == ("active", "waiting")
    assert after["panels"]["step"] == 1


async def test_the_end_of_a_run_is_told(http: httpx.AsyncClient, lab: Path) -> None:
    """So that nobody asks on."""
    with ProgressFeed(lab, total=1) as feed:
        feed.append(iter=2, score=0.5)

    body = await data(http)

    assert (body["status"], body["badge"]) == ("finished", "finished")


async def test_hostile_names_stay_text(http: httpx.AsyncClient, lab: Path) -> None:
    """In the page, in its charts and in its links."""
    append(lab, 1, bands=dict.fromkeys(HOSTILE, (0, 1)), **dict.fromkeys(HOSTILE, 9.0))

    page = await http.get(f"{BASE}/data")
    body = await data(http)

    assert len(body["panels"]["alarms"]) == len(HOSTILE)
    assert "<script>alert" not in page.text
    assert "<img" not in page.text
    assert "{{ 7 * 7 }}" in page.text
    scripts = re.findall(r"<script([^>]*)>([^<]*)</script>", page.text)
    policy = page.headers["content-security-policy"]
    nonce = re.findall(r"script-src 'nonce-([^']+)'", policy)[0]
    assert len(scripts) == 2
    assert all(f'nonce="{nonce}" src="' in tag and not text for tag, text in scripts)
    charts = [panel["chart"] for group in body["panels"]["groups"] for panel in group["panels"]]
    assert not any("<script" in chart or "<img" in chart for chart in charts)


async def test_the_page_can_be_had_undrawn(http: httpx.AsyncClient, lab: Path) -> None:
    """A development server draws the same page from what the gateway says."""
    append(lab, 1, bands={"a/b": [0, 1]}, **{"a/b": 9.0, "c": None})
    drawn = await http.get(f"{BASE}/data")
    undrawn = await http.get(f"{BASE}/data", headers={"accept": PAGE_TYPE})
    page = msgspec.json.decode(undrawn.content, type=Page)
    assert page.template == "data.html"

    with serve(create_app(lab.parents[1]), port=0) as gateway:
        async with asking(create_ui(gateway.address)) as ui:
            theirs = await ui.get(f"{BASE}/data", headers={"accept": "text/html"})
            polled = await data(ui)
            script = await ui.get(f"{BASE}/static/data.js")

    def main(text: str) -> str:
        return text[text.index("<main") : text.index("</main>")]

    assert main(theirs.text) == main(drawn.text)
    assert polled["panels"]["alarms"] == [{"id": "metric-0", "name": "a/b"}]
    assert script.status_code == 200


async def test_who_asks_within_a_second_shares_a_look(
    http: httpx.AsyncClient, lab: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made in a worker thread, and a file that did not change is not drawn again."""
    looks, drawings = [], []
    poll, panels_of = MetricsReader.poll, DataPage._drawn.__globals__["panels_of"]

    def counted_poll(reader: MetricsReader) -> bool:
        looks.append(threading.current_thread())
        return poll(reader)

    def counted_drawing(*args: Any, **options: Any) -> Any:
        drawings.append(1)
        return panels_of(*args, **options)

    monkeypatch.setattr(MetricsReader, "poll", counted_poll)
    monkeypatch.setitem(DataPage._drawn.__globals__, "panels_of", counted_drawing)
    append(lab, 1, loss=0.5)
    for _ in range(3):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(data, http)
        clock.advance(1)

    assert len(looks) == 3
    assert len(drawings) == 1
    assert threading.main_thread() not in looks
