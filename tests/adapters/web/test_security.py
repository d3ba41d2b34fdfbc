from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from aegir_adapters.web import create_app
from aegir_adapters.web.security import host_name

pytestmark = pytest.mark.anyio

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
async def http(run: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may send any headers."""
    app = create_app(run.directory.cfg, allowed_origins=["https://ui.example"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8091") as http:
        yield http


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8091", "[::1]:8091", "LOCALHOST:1"])
async def test_loopback_names_are_served(http: httpx.AsyncClient, host: str) -> None:
    """A browser on the same machine may ask under any loopback name and port."""
    answer = await http.get("/api/p5/runs", headers={"host": host})

    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[::1", "127.1"])
async def test_other_names_are_refused(http: httpx.AsyncClient, host: str) -> None:
    """A name that a foreign page has bound to this address (DNS rebinding) gets nothing."""
    answer = await http.get("/api/p5/runs", headers={"host": host})

    assert answer.status_code == 403
    assert "allowed_hosts" in answer.json()["error"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:8091", 200),
        ("https://ui.example", 200),
        ("http://localhost:3000", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
async def test_pages_of_other_origins_are_refused(
    http: httpx.AsyncClient, origin: str | None, status: int
) -> None:
    """Only our own pages and listed origins may ask; the listed may read the answer."""
    answer = await http.get("/api/p5/runs", headers={"origin": origin} if origin else {})

    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (origin if origin == "https://ui.example" else None)


async def test_the_page_runs_only_scripts_of_its_own(http: httpx.AsyncClient) -> None:
    """Every script carries the nonce of this very answer, none is inline, and none evaluates."""
    pages = [await http.get("/") for _ in range(2)]

    nonces = [re.findall(r"script-src 'nonce-([^']+)'", str(p.headers))[0] for p in pages]
    scripts = re.findall(r"<script([^>]*)>([^<]*)</script>", pages[0].text)
    assert nonces[0] != nonces[1]
    assert scripts
    assert all(f'nonce="{nonces[0]}" src="' in tag and not body for tag, body in scripts)
    assert "unsafe-eval" not in pages[0].headers["content-security-policy"]
    assert "://" not in re.sub(r"<code>.*?</code>", "", pages[0].text)


async def test_text_of_the_run_is_escaped(run: Any, http: httpx.AsyncClient) -> None:
    """What a sidecar says is shown as text, whatever it is."""
    run.directory.write_metadata("checkpoint-1", {"run_id": HOSTILE})

    page = await http.get("/")

    assert HOSTILE not in page.text
    assert "&lt;img" in page.text


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/charts/..%2fx.json", "/api/p5"],
)
async def test_paths_are_looked_up_and_never_joined(http: httpx.AsyncClient, path: str) -> None:
    """Only what was listed beforehand exists."""
    assert (await http.get(path)).status_code == 404


def test_the_port_is_no_part_of_a_host() -> None:
    """A `Host` header is compared by its name."""
    assert [host_name(h) for h in ("a:1", "[::1]:1", "[::1]", "a@b:1")] == ["a", "::1", "::1", "b"]
