from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegir_adapters.web import create_app
from aegir_adapters.web.overview import OverviewView, marks_of
from aegir_stream.events import GRPOMetrics, Progress
from aegir_stream.replay import replay

pytestmark = pytest.mark.anyio

STREAM = "/api/view/overview/stream"


async def test_the_stream_shows_what_a_replay_shows(run: Any, client: Any) -> None:
    """Whoever connects gets the whole picture in one event, the same as a replay gives."""
    for step in (1, 2):
        await run.step(step)

    async with client.open(STREAM) as stream:
        first = await stream.next()
    async with client.open(STREAM) as stream:
        again = await stream.next()

    assert first.name == "message"
    assert first.body == again.body == marks_of(replay(run.directory, OverviewView()).state)


async def test_the_picture_follows_the_run(run: Any, client: Any) -> None:
    """A step that is written while the page is open replaces the picture, without doubling."""
    async with client.open(STREAM) as stream:
        assert (await stream.next()).body["mark"] == []
        await run.step(1)
        marks = (await stream.next()).body
        while marks["mark"].count("cell") < 2 or "reward" not in marks["mark"]:
            marks = (await stream.next()).body

    assert marks["mark"] == ["cell", "cell", "band", "reward"]
    assert marks["layer"][:2] == [0, 4]
    assert marks["value"][:2] == [3.0, 3.0]
    assert marks["count"][:2] == [3, 3]


async def test_a_run_that_records_no_loss_pass_shows_its_first_one(
    sampling_run: Any, connect: Any
) -> None:
    """Of several passes one is drawn, since a token of two would count twice."""
    await sampling_run.step(1, pass_="decode")
    await sampling_run.step(1, pass_="prefill")
    async with (
        connect(create_app(sampling_run.directory.root)) as client,
        client.open(STREAM) as stream,
    ):
        marks = (await stream.next()).body

    cells = [place for place, mark in enumerate(marks["mark"]) if mark == "cell"]
    assert [marks["count"][place] for place in cells] == [3, 3]


async def test_a_directory_that_cannot_be_read_has_no_marks(tmp_path: Path, connect: Any) -> None:
    """The page says what is wrong; its stream waits for the directory to be readable."""
    async with connect(create_app(tmp_path / ("x" * 300))) as client:
        async with client.open(STREAM) as stream:
            assert (await stream.next()).body["mark"] == []
        page = await client.http.get("/")

    assert "File name too long" in page.text


def test_the_mean_reward_wins_over_the_score_of_a_step() -> None:
    """Metrics know the spread; a run that only reports progress still has a curve."""
    view = OverviewView()
    state = view.fold(view.initial(), [Progress(iter=1, score=0.1), Progress(iter=2, score=0.2)])
    state = view.fold(state, [GRPOMetrics(step=2, ts=0.0, reward_mean=0.5, reward_std=0.1)])

    marks = marks_of(state)

    assert marks["mark"] == ["band", "band", "reward", "reward"]
    assert marks["y1"][2:] == [0.1, 0.5]
