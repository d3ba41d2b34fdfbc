"""`aegir ui` as its user runs it: a process, its restarts and its end."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from adapters.web.dev.running import COMMAND, RunningUI
from aegir_adapters.web import create_app, serve

pytestmark = pytest.mark.anyio

Start = Callable[..., AbstractAsyncContextManager[RunningUI]]
CHARTS = "/charts/light.json"
PLOTS = "adapters/aegir_adapters/web/plots.py"


def edit(path: Path, old: str, new: str) -> None:
    """Change a file."""
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


async def title_of(address: str) -> str:
    """Ask for the charts; wait for a process that is just being started."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        found = re.search(r'"(Mean top activation|\w+ title)"', (await http.get(CHARTS)).text)
    assert found
    return found[1]


async def test_python_code_of_the_checkout_is_run_and_run_again(
    run: Any, checkout: Path, start_ui: Start
) -> None:
    """A saved Python file shows in the next answer, at the same address, after any mistake.

    The gateway stays what it is, so what is shown comes from the checkout.
    """
    await run.step(1)
    edit(checkout / PLOTS, "Mean top activation", "First title")
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with start_ui(gateway.address, "--checkout", checkout) as ui:
            first = await title_of(ui.address)

            edit(checkout / PLOTS, "First title", "Second title")
            await ui.tells("plots.py changed")
            second = await title_of(ui.address)

            edit(checkout / PLOTS, "def overview_item(", "def overview_item((")
            error = await ui.tells("Nothing is served")
            edit(checkout / PLOTS, "def overview_item((", "def overview_item(")
            await ui.tells("plots.py changed")
            third = await title_of(ui.address)
        there = await title_of(gateway.address)

    assert "SyntaxError" in error
    assert [first, second, third] == ["First title", "Second title", "Second title"]
    assert there == "Mean top activation"


async def test_what_is_printed_is_what_one_needs(run: Any, checkout: Path, start_ui: Start) -> None:
    """One line: where to look, whose data, whose pages."""
    async with start_ui("http://127.0.0.1:9", "--checkout", checkout) as ui:
        assert ui.address.startswith("http://127.0.0.1:")
        assert "shows http://127.0.0.1:9 " in ui.said
        assert str(checkout / "adapters/aegir_adapters/web") in ui.said


async def test_ctrl_c_ends_it_with_open_streams(run: Any, start_ui: Start) -> None:
    """Streams end properly, soon and silently; the exit code says that it was interrupted."""
    await run.step(1)
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with (
            start_ui(gateway.address) as ui,
            httpx.AsyncClient(base_url=ui.address, timeout=60) as http,
            http.stream("GET", "/api/p5/sae/stream?from=start") as records,
            http.stream("GET", "/.aegir/changes") as versions,
        ):
            bodies = [answer.aiter_raw() for answer in (records, versions)]
            for body in bodies:
                await anext(body)
            begun = time.monotonic()
            code = await ui.interrupt()
            took_s = time.monotonic() - begun
            said = await ui.rest()
            for body in bodies:
                async for _ in body:
                    pass

    assert (code, said) == (130, "")
    assert took_s < 5


async def test_nothing_outlives_it(run: Any, start_ui: Start) -> None:
    """Killed, it leaves no process behind: the one that it started ends by itself."""
    await run.step(1)
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with (
            start_ui(gateway.address) as ui,
            httpx.AsyncClient(base_url=ui.address, timeout=60) as http,
            http.stream("GET", "/.aegir/changes") as versions,
        ):
            body = versions.aiter_raw()
            await anext(body)
            ui.process.kill()
            with anyio.fail_after(20):
                async for _ in body:
                    pass


async def test_curl_sees_the_first_event_at_once(run: Any, start_ui: Start) -> None:
    """`curl -N` prints what is there while the stream stays open: nothing is held back."""
    await run.step(1)
    with serve(create_app(run.directory.cfg), port=0) as gateway:
        async with start_ui(gateway.address) as ui:
            url = f"{ui.address}/api/p5/sae/stream?from=start"
            async with await anyio.open_process(["curl", "-sN", url], stdin=None) as curl:
                assert curl.stdout
                seen = b""
                with anyio.fail_after(20):
                    while seen.count(b"\ndata: {") < 7:
                        seen += await curl.stdout.receive()
                curl.terminate()

    assert seen.startswith(b"retry: 1000\n")
    assert [line[6:] for line in seen.decode().splitlines() if line[:14] == 'data: {"step":'] == (
        run.lines
    )


# -- the command line ------------------------------------------------------------------------------


def refused(*options: str, directory: Path | None = None) -> tuple[int, str]:
    """Run the command where it has to refuse; return exit code and message."""
    done = subprocess.run(
        [*COMMAND, *options], check=False, capture_output=True, text=True, timeout=60, cwd=directory
    )
    return done.returncode, done.stderr


def test_a_gateway_that_is_no_address_is_refused() -> None:
    """The message names the value and the variable."""
    code, error = refused("--gateway", "localhost:8091")

    assert code == 1
    assert "`localhost:8091`" in error
    assert "AEGIR_GATEWAY_URL" in error


def test_a_directory_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    """The message names it and what it lacks."""
    code, error = refused("--checkout", str(tmp_path))

    assert code == 1
    assert f"`{tmp_path}`" in error
    assert "aegir_adapters/web/dev" in error


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    """A port that was asked for is taken, or the command ends; no other process does."""
    with serve(create_app(tmp_path), port=0) as other:
        code, error = refused("--port", str(other.port))
        still_there = httpx.get(f"{other.address}/api/p5/runs").status_code

    assert code == 2
    assert str(other.port) in error
    assert still_there == 200


def test_a_public_address_has_to_be_asked_for() -> None:
    """As for `aegir serve`."""
    code, error = refused("--host", "192.0.2.1")

    assert code == 1
    assert "--allow-public" in error
