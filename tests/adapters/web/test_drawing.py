from __future__ import annotations

import json
import re
from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request

from aegir_adapters.web import create_app
from aegir_adapters.web.drawing import CHARTS_TYPE, PAGE_TYPE, draw
from aegir_adapters.web.page import Page
from aegir_adapters.web.plots import Charts

pytestmark = pytest.mark.anyio

HOSTILE = '<img src=x onerror="alert(1)">'
PAGES = ["/", "/live", "/setup/run/run/0", "/setup/run", "/setup/run/run/0/sae/"]


@pytest.fixture
async def http(run: Any) -> Any:
    """A client of the application, without a server between them."""
    await run.step(1)
    await run.step(2)
    run.directory.write_metadata("checkpoint-1", {"run_id": HOSTILE})
    app = create_app(run.directory.cfg)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


def as_drawn(text: str) -> str:
    """Return a page without what differs from answer to answer: nonce, and ages in seconds."""
    return re.sub(r'nonce="[^"]+"|\d+ s ago', "", text)


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_can_be_had_undrawn(http: httpx.AsyncClient, path: str) -> None:
    """What a page says and the templates of whoever asked for it give the page itself."""
    drawn = await http.get(path)
    undrawn = await http.get(path, headers={"accept": f"{PAGE_TYPE}, text/html"})
    page = msgspec.json.decode(undrawn.content, type=Page)
    request = Request(
        {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "scheme": "http",
            "server": ("localhost", 80),
        }
    )

    assert undrawn.headers["content-type"] == PAGE_TYPE
    assert as_drawn(bytes(draw(request, page).body).decode()) == as_drawn(drawn.text)


async def test_the_charts_can_be_had_undrawn(http: httpx.AsyncClient) -> None:
    """What the charts show comes without the colours and axes it is drawn with."""
    undrawn = await http.get("/charts/dark.json", headers={"accept": CHARTS_TYPE})
    charts = msgspec.json.decode(undrawn.content, type=Charts)
    drawn = await http.get("/charts/dark.json")

    assert undrawn.headers["content-type"] == CHARTS_TYPE
    assert (charts.scheme, charts.layers) == ("dark", [0, 4])
    assert charts.data_url == "api/view/overview/stream"
    assert drawn.json()["target_id"] == "charts"


@pytest.mark.parametrize("path", PAGES)
async def test_a_cache_is_told_that_there_are_two_answers(
    http: httpx.AsyncClient, path: str
) -> None:
    """Neither answer is stored or taken for the other, and both carry the headers of a page."""
    for accept in ("text/html", PAGE_TYPE):
        answer = await http.get(path, headers={"accept": accept})

        assert answer.headers["vary"] == "Accept"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("accept", "is_drawn"),
    [
        ("*/*", True),
        ("", True),
        ("text/html,application/xhtml+xml,*/*;q=0.8", True),
        ("application/json", True),
        (PAGE_TYPE, False),
        (f"text/html, {PAGE_TYPE.upper()};q=0.1", False),
    ],
)
async def test_only_who_names_the_type_draws(
    http: httpx.AsyncClient, accept: str, *, is_drawn: bool
) -> None:
    """Whatever else a client accepts, it is sent the page."""
    answer = await http.get("/", headers={"accept": accept})

    assert answer.headers["content-type"].startswith("text/html") == is_drawn


async def test_hostile_text_is_text_either_way(http: httpx.AsyncClient) -> None:
    """Undrawn, the text of a run is what it is; drawn, it is escaped."""
    drawn = await http.get("/")
    undrawn = await http.get("/", headers={"accept": PAGE_TYPE})

    assert HOSTILE not in drawn.text
    assert "&lt;img" in drawn.text
    assert HOSTILE in {
        row["run_id"] for row in json.loads(undrawn.text)["context"]["table"]["rows"]
    }
