from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from aegir_stream.config import P5Cfg
from aegir_stream.disk import Disk
from aegir_stream.errors import OptionError
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import follow, read_events, replay
from aegir_stream.source import RunSource
from aegir_stream.views import HeatmapView
from core.runs import Life, drain, records_in


class ListingDisk(Disk):
    """A disk that counts how often a directory is listed."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: dict[str, int] = {}

    def names(self, directory: Path) -> list[str]:
        """List a directory."""
        self.listed[directory.name] = self.listed.get(directory.name, 0) + 1
        return super().names(directory)


def steps_in(state: Any) -> set[int]:
    """Return the steps that a heat map holds."""
    return {step for steps in state.layers.values() for step in steps}


@pytest.mark.anyio
async def test_following_notices_a_rewind_that_only_new_lanes_tell(tmp_path: Path) -> None:
    """An attempt that writes in lanes of its own rewinds what the lanes before it hold."""
    run = RunDirectory.at(tmp_path)
    first = Life(run)
    for _ in range(3):
        first.record_step(1)
    first.kill()
    with anyio.fail_after(20):
        async with aclosing(follow(run, HeatmapView())) as states:
            async for replayed in states:
                if steps_in(replayed.state) == {1, 2, 3} and first.step == 3:
                    second = Life.__new__(Life)
                    Life.__init__(second, run, rank=1)
                    second.record_step(1)
                    first.step = 0
                if first.step == 0 and steps_in(replayed.state) == {1}:
                    break

    assert steps_in(replay(run, HeatmapView()).state) == {1}


def test_going_on_notices_a_rewind_of_a_lane_that_did_not_come_back(tmp_path: Path) -> None:
    """A saved state that was folded before a resume is not gone on from."""
    run = RunDirectory.at(tmp_path)
    lives = [Life(run, rank=rank) for rank in (0, 1)]
    for life in lives:
        life.record_step(1)
        life.save()
    lives[1].record_step(1)
    for life in lives:
        life.kill()
    run.live("sae_features").unlink()  # killed before it began the next segment
    saved = replay(run, HeatmapView())
    assert steps_in(saved.state) == {1, 2}
    lives[0].resume("checkpoint-1")

    resumed = replay(run, HeatmapView(), after=saved)

    assert steps_in(resumed.state) == {1}
    assert resumed == replay(run, HeatmapView())
    assert replay(run, HeatmapView(), after=resumed) == resumed


def test_catching_up_lists_the_directory_a_few_times_only(tmp_path: Path) -> None:
    """Reading many segments costs no listing for each of them."""
    life = Life(RunDirectory.at(tmp_path))
    for _ in range(40):
        life.record_step(1)
        life.save()
    disk = ListingDisk()

    seen = drain(RunSource(RunDirectory(P5Cfg(output_dir=str(tmp_path)), disk=disk), start="start"))

    assert records_in(seen) == life.surviving
    assert disk.listed["history"] < 10


def test_a_stream_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """The error says which streams there are."""
    expected = r"sae_features, completions, grpo_metrics, step_metrics, progress, got `heatmap`"
    with pytest.raises(OptionError, match=expected):
        RunSource(RunDirectory.at(tmp_path), "heatmap")
    with pytest.raises(OptionError, match=expected):
        list(read_events(RunDirectory.at(tmp_path), "heatmap"))
