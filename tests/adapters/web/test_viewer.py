from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from aegir_adapters.web import create_app, watches
from aegir_adapters.web.watches import Watches
from aegir_stream.layout import RunDirectory
from aegir_stream.progress import ProgressFeed
from aegir_stream.testing import ManualClock

pytestmark = pytest.mark.anyio

KEYS = {"active", "status", "iteration", "best", "cost", "calls", "chart", "facts", "note"}
HOSTILE = "<img src=x onerror=alert(1)> & <script>alert(1)"
HOUR = 3600.0


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands at the present, as files bear the present's times."""
    return ManualClock(time.time())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory for setups."""
    return tmp_path / "root"


@asynccontextmanager
async def asking(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application, without a server between them."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


@pytest.fixture
async def http(root: Path, clock: ManualClock) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the viewer of a root."""
    async with asking(create_app(root, clock=clock)) as http:
        yield http


def row(iteration: int, score: object = None, **fields: object) -> bytes:
    """Return a row as another program would write it."""
    return json.dumps({"iter": iteration, "score": score, **fields}).encode() + b"\n"


def append(run: Path, *lines: bytes) -> Path:
    """Append to the feed of a run, as another program would."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / "progress.jsonl").open("ab") as file:
        file.writelines(lines)
    return run


def finish(run: Path, **row: Any) -> Path:
    """Write the feed of a run that has ended."""
    with ProgressFeed(run, total=1) as feed:
        feed.append(iter=1, **row)
    return run


def set_back(run: Path, seconds: float) -> None:
    """Make a run look as if nothing was written for a while."""
    for path in [*run.iterdir(), run]:
        os.utime(path, (time.time() - seconds,) * 2)


def refuse(token: str) -> None:
    """Fail on what JSON does not have."""
    raise AssertionError(token)


async def live(http: httpx.AsyncClient, run: str = "lab/run/0") -> Any:
    """Return the body of `live.json`, which has the same keys and no bad number, whatever is."""
    answer = await http.get(f"/setup/{run}/live.json")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = json.loads(answer.text, parse_constant=refuse)
    assert set(body) == KEYS
    numbers = [body[key] for key in ("iteration", "best", "cost", "calls")]
    assert all(value is None or math.isfinite(value) for value in numbers)
    return body


# -- live.json -----------------------------------------------------------------------------------


async def test_a_run_that_goes_on(http: httpx.AsyncClient, root: Path) -> None:
    """The newest iteration, the best score, cost and calls so far, and the chart."""
    append(root / "lab" / "a", row(1, 0.5, cost=1.0, calls=2), row(2, 0.4, cost=2.5, calls=7))

    body = await live(http)

    assert body["active"] is True
    assert body["status"] == "active"
    assert (body["iteration"], body["best"]) == (2, 0.5)
    assert (body["cost"], body["calls"]) == (2.5, 7)
    assert body["chart"].startswith('<svg class="trajectory"')
    assert ["Newest score", "0.4"] in body["facts"]


async def test_a_run_that_has_ended(http: httpx.AsyncClient, root: Path) -> None:
    """It is not active, and keeps its figures; what it never told is null."""
    finish(root / "lab" / "a", score=0.25)

    body = await live(http)

    assert body["active"] is False
    assert body["status"] == "finished"
    assert (body["iteration"], body["best"]) == (1, 0.25)
    assert (body["cost"], body["calls"]) == (None, None)
    assert ["Iteration", "1 of 1"] in body["facts"]


async def test_a_run_without_a_feed_counts_its_checkpoints(
    http: httpx.AsyncClient, root: Path
) -> None:
    """Where nobody wrote a feed, the newest checkpoint tells how far it got."""
    (root / "lab" / "a" / "checkpoint-40").mkdir(parents=True)

    body = await live(http)

    assert (body["iteration"], body["best"]) == (40, None)
    assert "no scores yet" in body["chart"]


async def test_a_run_without_rows_is_live(http: httpx.AsyncClient, root: Path) -> None:
    """A job that has just begun is no failure."""
    feed = ProgressFeed(root / "lab" / "a", total=9)
    feed._recorder.flush(timeout_s=10)

    body = await live(http)
    feed.close()

    assert (body["status"], body["iteration"]) == ("active", None)
    assert dict(body["facts"])["Iteration"] == "\N{EN DASH} of 9"


async def test_silence_is_stalled_until_the_next_line(
    http: httpx.AsyncClient, root: Path, clock: ManualClock
) -> None:
    """Without any proof of an end, a silent run is stalled, and lives again with its next line."""
    run = append(root / "lab" / "a", row(1, 0.5))
    set_back(run, HOUR)

    statuses = [(await live(http))["status"]]
    append(run, row(2, 0.6))
    clock.advance(1)
    statuses.append((await live(http))["status"])

    assert statuses == ["stalled", "active"]


async def test_the_user_tells_what_a_run_costs(root: Path, clock: ManualClock) -> None:
    """A reader of the user's replaces the keys of the feed; one that fails counts as unknown."""
    append(root / "lab" / "a", row(1, 0.5, cost=99))
    append(root / "lab" / "b", row(1, 0.5, cost=99))

    def costs(run: RunDirectory) -> tuple[float | None, float | None]:
        bill = json.loads((run.root / "bill.json").read_text())
        return bill["usd"], None

    (root / "lab" / "b" / "bill.json").write_text('{"usd": 3.5}')
    async with asking(create_app(root, clock=clock, costs=costs)) as http:
        answers = [await live(http, f"lab/run/{index}") for index in (0, 1)]

    assert [(body["cost"], body["calls"]) for body in answers] == [(None, None), (3.5, None)]


# -- bad input -----------------------------------------------------------------------------------

NOTHING = (None, None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", NOTHING, id="empty"),
        pytest.param(row(3, 0.5) + b'{"iter": 4, "sco', (3, 0.5), id="torn last line"),
        pytest.param(os.urandom(4096) + b"\n" + row(3, 0.5), (3, 0.5), id="binary garbage"),
        pytest.param(b"\0" * 4096 + b"\n" + row(3, 0.5), (3, 0.5), id="NUL bytes"),
        pytest.param(b'{"iter": 3}\n{"iter": 4}\n', (4, None), id="rows without a score"),
        pytest.param(row(1, math.nan) + row(2, math.inf), (2, None), id="NaN and infinite scores"),
        pytest.param(row(1, -math.inf, cost=math.nan) + row(2, 0.5), (2, 0.5), id="infinite cost"),
        pytest.param(row(9, 0.1) + row(3, 0.5) + row(7, 0.2), (9, 0.5), id="out of order"),
        pytest.param(row(1, 0.9) + row(2, 0.3) + row(1, 0.1), (2, 0.3), id="repeated by a resume"),
        pytest.param(row(1, 0.5, ts=9e9) + row(2, 0.6, ts=5.0), (2, 0.6), id="clock set back"),
        pytest.param(row(1, 0.5, ts=1e308) + row(2, 0.5, ts=-1e308), (2, 0.5), id="absurd times"),
        pytest.param(row(2**63 - 1, 1e308) + row(-5, -1e308), (2**63 - 1, 1e308), id="huge"),
        pytest.param(b'[1]\n"x"\nnull\n' + row(1, 0.5), (1, 0.5), id="JSON, but no rows"),
    ],
)
async def test_a_feed_of_any_content_is_shown(
    http: httpx.AsyncClient, root: Path, content: bytes, expected: tuple[Any, Any]
) -> None:
    """Rows that can be read count, the rest is passed over; page and list are there as well."""
    append(root / "lab" / "a", content)

    body = await live(http)
    pages = [await http.get(path) for path in ("/", "/setup/lab", "/setup/lab/run/0")]

    assert (body["iteration"], body["best"]) == expected
    assert [page.status_code for page in pages] == [200, 200, 200]


async def test_a_missing_feed_is_no_failure(http: httpx.AsyncClient, root: Path) -> None:
    """A run directory with a manifest and nothing else has a page."""
    (root / "lab" / "a").mkdir(parents=True)
    (root / "lab" / "a" / "aegir_run.json").write_text('{"run_id": "x", "attempts": 7}')

    body = await live(http)

    assert (body["iteration"], body["best"]) == NOTHING


async def test_a_replaced_feed_is_read_anew(
    http: httpx.AsyncClient, root: Path, clock: ManualClock
) -> None:
    """When another file takes the place of the feed, its rows are all that counts."""
    run = append(root / "lab" / "a", row(1, 0.9), row(2, 0.8))
    before = await live(http)
    (run / "next").write_bytes(row(1, 0.2))
    (run / "next").replace(run / "progress.jsonl")
    clock.advance(1)

    after = await live(http)

    assert (before["iteration"], before["best"]) == (2, 0.9)
    assert (after["iteration"], after["best"]) == (1, 0.2)


async def test_skipped_lines_are_told(http: httpx.AsyncClient, root: Path) -> None:
    """What could not be read is counted, in a sentence."""
    append(root / "lab" / "a", row(1, 0.5), b"oops\n")

    assert (await live(http))["note"] == "In its feed, 1 line is no row."


@pytest.mark.parametrize(
    "path",
    [
        "nobody/run/0",
        "lab/run/1",
        "lab/run/-1",
        "lab/run/00",
        "lab/run/x",
        "lab/run/1e3",
        "lab/run/%D9%A0",
        "lab/run/" + "9" * 5000,
        "../run/0",
        "%2e%2e/run/0",
        "..%2f..%2fetc/run/0",
        "lab%2f..%2flab/run/0",
        "lab%00/run/0",
        "%ff%fe/run/0",
        ".hidden/run/0",
        quote(HOSTILE, safe="") + "/run/0",
        "%3Cscript%3Ealert(1)%3C%2Fscript%3E/run/0",
    ],
)
@pytest.mark.parametrize("page", ["", "/live.json", "/sae/", "/sae/api/p5/runs"])
async def test_an_unknown_run_is_told_as_json(
    http: httpx.AsyncClient, root: Path, path: str, page: str
) -> None:
    """Labels and numbers are looked up in what was found; everything else is 404, as JSON."""
    append(root / "lab" / "a", row(1))
    append(root / ".hidden" / "a", row(1))
    append(root.parent / "outside", row(1))

    answer = await http.get(f"/setup/{path}{page}")

    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("label", ["nobody", "%2e%2e", "lab%2frun", "%00"])
async def test_an_unknown_setup_is_told_as_json(
    http: httpx.AsyncClient, root: Path, label: str
) -> None:
    """So is a setup that is not there."""
    append(root / "lab" / "run", row(1))

    answer = await http.get(f"/setup/{label}")

    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("label", [HOSTILE, "100% a?b#c", "\N{SNOWMAN}", "a b", "\n", "%2e%2e"])
async def test_a_label_of_any_text_is_shown_and_linked(
    http: httpx.AsyncClient, root: Path, label: str
) -> None:
    """Labels are escaped, and links lead to what they name."""
    append(root / label / f"{HOSTILE} run", row(1, 0.5))

    first = await http.get("/")
    setup = await http.get(urljoin("http://localhost/", href(first, "setup/[^/]*")))
    run = await http.get(urljoin(str(setup.url), href(setup, r"\.\./setup/[^/]*/run/0")))

    pages = [first, setup, run]
    assert [page.status_code for page in pages] == [200, 200, 200]
    assert all("<img" not in page.text and "<script>" not in page.text for page in pages)
    assert all("&lt;img src=x" in page.text for page in pages)


async def test_a_label_that_is_no_text_is_shown_and_linked(
    http: httpx.AsyncClient, root: Path
) -> None:
    """File names may be any bytes; those that are no text are replaced, here and in links."""
    directory = os.fsencode(root) + b"/lab-\xff"
    os.makedirs(directory + b"/run-\xfe")  # noqa: PTH103 - bytes
    append(Path(os.fsdecode(directory + b"/run-\xfe")), row(1, 0.5))

    first = await http.get("/")
    run = await http.get(urljoin("http://localhost/", href(first, "setup/[^/]*/run/0")))

    assert "lab-\N{REPLACEMENT CHARACTER}" in first.text
    assert "run-\N{REPLACEMENT CHARACTER}" in run.text


def href(page: httpx.Response, pattern: str) -> str:
    """Return the first link of a page that looks like `pattern`."""
    return str(re.findall(f'href="({pattern})"', page.text)[0])


# -- the list of runs ----------------------------------------------------------------------------


async def test_the_list_holds_every_run_newest_first(http: httpx.AsyncClient, root: Path) -> None:
    """Every run of every setup, by its last line; a run directly under the root is a setup too."""
    for place, name in enumerate(["lab/a", "lab/b", "shop/c", "lone"]):
        set_back(finish(root / name, score=place / 10), HOUR * (9 - place))
    (root / "empty").mkdir()

    page = await http.get("/")

    links = re.findall(r'<th scope="row"><a href="([^"]+)"', page.text)
    assert links == ["setup/lone/run/0", "setup/shop/run/0", "setup/lab/run/1", "setup/lab/run/0"]
    assert page.text.count('<span class="badge finished">finished</span>') == 4
    assert "4 runs in 3 setups" in page.text
    assert "6 h ago" in page.text


async def test_a_setup_lists_its_runs(http: httpx.AsyncClient, root: Path) -> None:
    """The page of a setup holds its runs and no others."""
    finish(root / "lab" / "ours", score=0.5)
    finish(root / "shop" / "theirs", score=0.5)

    page = await http.get("/setup/lab")

    assert "ours" in page.text
    assert "theirs" not in page.text


async def test_a_long_list_has_pages(http: httpx.AsyncClient, root: Path) -> None:
    """At most 200 runs a page; a page that is not there is the nearest that is."""
    for number in range(205):
        append(root / "lab" / f"run-{number}")

    counts = {}
    for query in ("", "?page=2", "?page=99", "?page=0", "?page=x", "?page=-1", "?page=" + "9" * 99):
        counts[query] = (await http.get(f"/{query}")).text.count('<th scope="row">')

    assert counts[""] == counts["?page=0"] == counts["?page=x"] == counts["?page=-1"] == 200
    assert counts["?page=2"] == counts["?page=99"] == 5
    assert counts["?page=" + "9" * 99] == 200


async def test_a_run_that_begins_appears(
    http: httpx.AsyncClient, root: Path, clock: ManualClock
) -> None:
    """A root that is not there yet has the first page of a run, then a list of what comes."""
    before = await http.get("/")
    append(root / "lab" / "a", row(1, 0.5))
    clock.advance(3)

    after = await http.get("/")

    assert "waiting" in before.text
    assert "setup/lab/run/0" in after.text
    assert (await live(http))["iteration"] == 1


async def test_a_run_that_is_removed_is_unknown_soon(
    http: httpx.AsyncClient, root: Path, clock: ManualClock
) -> None:
    """It counts as found for a few seconds, with nothing to tell, and is 404 then."""
    run = append(root / "lab" / "a", row(1, 0.5))
    await live(http)
    shutil.rmtree(run)
    clock.advance(3)
    gone = await live(http)
    clock.advance(10)

    answer = await http.get("/setup/lab/run/0/live.json")

    assert (gone["iteration"], gone["best"]) == NOTHING
    assert answer.status_code == 404


# -- one run alone -------------------------------------------------------------------------------


async def test_a_run_alone_is_run_0_of_its_own_setup(tmp_path: Path, clock: ManualClock) -> None:
    """Its first page is the one it always had, and links to its live viewer."""
    append(tmp_path / "mine", row(1, 0.5))
    async with asking(create_app(tmp_path / "mine", clock=clock)) as http:
        first = await http.get("/")
        link = href(first, "setup/[^/]*/run/0")
        viewer = await http.get(f"/{link}")
        body = await live(http, "mine/run/0")

    assert link == "setup/mine/run/0"
    assert '<span class="badge live"' in first.text
    assert "static/bokeh" in first.text
    assert 'data-live="0/live.json"' in viewer.text
    assert body["best"] == 0.5


# -- pages of the SAEs ---------------------------------------------------------------------------


async def test_each_run_has_its_charts_and_its_stream(run: Any, connect: Any) -> None:
    """Below `sae/`, every run under a root has what a run alone has; the viewer links to it."""
    await run.step(1)
    root = run.directory.root.parent
    async with connect(create_app(root)) as client:
        base = f"/setup/{run.directory.root.name}/run/0"
        viewer = await client.http.get(base)
        page = await client.http.get(f"{base}/sae/")
        script = await client.http.get(f"{base}/sae/static/page.js")
        table = await client.http.get(f"{base}/sae/api/p5/runs")
        async with client.open(f"{base}/sae/api/p5/sae/stream") as stream:
            records = await stream.records(6)

    assert 'href="0/sae/"' in viewer.text
    assert page.status_code == script.status_code == 200
    assert href(page, r"\.\./\.\./0") == "../../0"
    assert table.json()["p5_dir"] == str(run.directory.root)
    assert [record.data for record in records] == run.lines


async def test_a_run_without_records_has_no_link_to_them(
    http: httpx.AsyncClient, root: Path
) -> None:
    """An optimiser that only writes a feed is not shown what trainers have."""
    append(root / "lab" / "a", row(1, 0.5))

    assert "sae/" not in (await http.get("/setup/lab/run/0")).text


# -- safety and sharing --------------------------------------------------------------------------


async def test_pages_run_only_scripts_of_their_own(http: httpx.AsyncClient, root: Path) -> None:
    """Every page of the viewer bears the strict policy, is never stored, and has no inline code."""
    append(root / "lab" / "a", row(1, 0.5))

    pages = [await http.get(path) for path in ("/", "/setup/lab", "/setup/lab/run/0")]

    for page in pages:
        policy = page.headers["content-security-policy"]
        nonce = re.findall(r"script-src 'nonce-([^']+)'", policy)[0]
        assert page.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in policy
        scripts = re.findall(r"<script([^>]*)>([^<]*)</script>", page.text)
        assert all(f'nonce="{nonce}" src="' in tag and not body for tag, body in scripts)


async def test_other_hosts_and_origins_are_refused(http: httpx.AsyncClient, root: Path) -> None:
    """The viewer is behind the same gate as everything else."""
    append(root / "lab" / "a", row(1, 0.5))

    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        for path in ("/", "/setup/lab/run/0/live.json"):
            assert (await http.get(path, headers=headers)).status_code == 403


async def test_the_viewer_works_under_a_path(root: Path, clock: ManualClock) -> None:
    """Mounted, every link of every page leads to something."""
    append(root / "lab" / "a", row(1, 0.5))
    app = Starlette(routes=[Mount("/deep/down", create_app(root, clock=clock))])
    async with asking(app) as http:
        for path in ("/", "/setup/lab", "/setup/lab/run/0"):
            page = await http.get(f"/deep/down{path}")
            links = re.findall(r'(?:href|src|data-live)="([^"]+)"', page.text)
            for link in links:
                if not link.startswith("data:"):
                    answer = await http.get(urljoin(str(page.url), link))
                    assert answer.status_code == 200, link


async def test_many_viewers_share_one_look(root: Path, clock: ManualClock) -> None:
    """However many ask within a second, the run is looked at once."""
    append(root / "lab" / "a", row(1, 0.5))
    looks = []

    def costs(run: RunDirectory) -> tuple[float | None, float | None]:
        looks.append(threading.current_thread())
        return None, None

    async with asking(create_app(root, clock=clock, costs=costs)) as http:
        for _ in range(2):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(live, http)
            clock.advance(1)

    assert len(looks) == 2
    assert threading.main_thread() not in looks


async def test_a_look_that_takes_long_keeps_nobody_else(root: Path, clock: ManualClock) -> None:
    """While a huge feed is read for the first time, the server answers everything else."""
    append(root / "lab" / "a", row(1, 0.5))
    append(root / "lab" / "b", row(1, 0.5))
    began, may_end = threading.Event(), threading.Event()

    def costs(run: RunDirectory) -> tuple[float | None, float | None]:
        if run.root.name == "a":
            began.set()
            may_end.wait(60)
        return None, None

    async with (
        asking(create_app(root, clock=clock, costs=costs)) as http,
        anyio.create_task_group() as group,
    ):
        for _ in range(100):
            group.start_soon(live, http)
        await anyio.to_thread.run_sync(began.wait)
        other = await live(http, "lab/run/1")
        overview = await http.get("/")
        may_end.set()

    assert other["best"] == 0.5
    assert "being read" in overview.text


def test_watches_are_few(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many runs, only those that were asked for last are kept in memory."""
    monkeypatch.setattr(watches, "MOST_WATCHES", 2)
    kept = Watches(clock, None)
    runs = [RunDirectory.at(tmp_path / name) for name in "abc"]

    a, b = kept.of(runs[0]), kept.of(runs[1])
    assert kept.of(runs[0]) is a
    kept.of(runs[2])

    assert kept.of(runs[0]) is a
    assert kept.of(runs[1]) is not b


async def test_the_example_is_shown_like_any_other_job(root: Path) -> None:
    """The optimiser of the documentation, which knows nothing of trainers, has its viewer."""
    example = Path(__file__).parents[3] / "docs" / "examples" / "optimise.py"
    run = root / "hill" / "first"
    await anyio.run_process([sys.executable, str(example), str(run), "30", "0"])
    async with asking(create_app(root)) as http:
        page = await http.get("/setup/hill/run/0")
        live = (await http.get("/setup/hill/run/0/live.json")).json()

    assert page.status_code == 200
    assert "finished" in page.text
    assert (live["active"], live["iteration"], live["calls"]) == (False, 29, 30)
    assert 0 < live["best"] <= 1
    assert live["chart"].startswith("<svg")
