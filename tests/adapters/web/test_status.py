from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegir_adapters.web.status import read_status
from aegir_stream.clock import SystemClock
from aegir_stream.layout import RunDirectory

pytestmark = pytest.mark.anyio


async def test_the_badge_says_what_the_run_does(run: Any) -> None:
    """Waiting, starting, live, quiet, finished: from the run's files and the time alone."""
    now = SystemClock().time()
    badges = [read_status(run.directory, now=now).badge]
    await run.sink.open()
    badges.append(read_status(run.directory, now=now).badge)
    await run.step(1)
    badges.append(read_status(run.directory, now=now).badge)
    badges.append(read_status(run.directory, now=now + 3600).badge)
    await run.finish()
    badges.append(read_status(run.directory, now=now + 3600).badge)

    assert badges == ["waiting", "starting", "live", "quiet", "finished"]


async def test_the_newest_step_is_shown(run: Any) -> None:
    """The facts are those of the last whole line; a torn or foreign one is passed over."""
    await run.step(1)
    await run.step(2)
    with run.directory.live("grpo_metrics").open("ab") as file:
        file.write(b'{"foreign": true}\n{"step": 3, "ts"')

    facts = dict(read_status(run.directory, now=SystemClock().time()).facts)

    assert facts["Step"] == "2"
    assert facts["Reward"] == "0.2"


@pytest.mark.parametrize(
    ("age_s", "text"), [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")]
)
async def test_ages_are_for_people(run: Any, age_s: float, text: str) -> None:
    """The age of the last step is told in one unit."""
    await run.step(1)

    facts = dict(read_status(run.directory, now=SystemClock().time() + age_s).facts)

    assert facts["Last step"] == f"{text} ago"


def test_a_missing_directory_says_what_to_do(tmp_path: Path) -> None:
    """The page is there before the run is, and tells the remedy."""
    status = read_status(RunDirectory.at(tmp_path / "later"), now=0.0)

    assert status.badge == "waiting"
    assert "AEGIR_P5_OUTPUT_DIR" in (status.reason or "")
