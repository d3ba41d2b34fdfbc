from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from aegir_adapters.web import create_app

pytestmark = pytest.mark.anyio


def in_starlette(app: Starlette) -> Starlette:
    """Mount below a path of a Starlette application."""
    return Starlette(routes=[Mount("/lab/run", app)])


def in_fastapi(app: Starlette) -> Starlette:
    """Mount below a path of a FastAPI application."""
    parent = FastAPI()
    parent.mount("/lab/run", app)
    return parent


@pytest.mark.parametrize("mounted", [in_starlette, in_fastapi])
async def test_everything_works_under_a_path(
    run: Any, connect: Any, mounted: Callable[[Starlette], Starlette]
) -> None:
    """Mounted, with no lifespan of its own, the application serves its page and its streams."""
    await run.step(1)
    app = create_app(run.directory.cfg)

    async with connect(mounted(app)) as client:
        page = await client.http.get("/lab/run/")
        table = await client.http.get("/lab/run/api/p5/runs")
        async with client.open("/lab/run/api/p5/sae/stream") as stream:
            await stream.records(6)
            await run.step(2)
            records = await stream.records(6)
        # The parent server knows nothing of our streams.
        app.state.stopping.stop()

    assert page.status_code == 200
    assert 'src="static/' in page.text
    assert "/lab/run/api/p5/sae/stream" in page.text
    assert table.json()["p5_dir_exists"]
    assert [record.data for record in records] == run.lines[6:]


async def test_the_page_below_a_path_ends_in_a_slash(run: Any, connect: Any) -> None:
    """Without its last slash, the address would misplace every relative link: it is redirected."""
    async with connect(in_starlette(create_app(run.directory.cfg))) as client:
        answer = await client.http.get("/lab/run")

    assert answer.status_code == 307
    assert answer.headers["location"].endswith("/lab/run/")
