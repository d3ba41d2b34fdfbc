from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aegir_stream.disk import Disk, Reading
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource
from core.runs import Life, drain, on, records_in
from system.following import delivered
from system.mounts import Mirror
from system.processes import following

CHECKPOINTS, KEPT, FOLLOWERS = 60, 2, 3


@pytest.mark.parametrize("side", ["backing", "mount"])
def test_a_file_that_is_held_open_stays_behind_on_the_mount(mirror: Mirror, side: str) -> None:
    """Removing a checkpoint fails where a reader holds a file in it, on the mount and only there.

    This is what the other tests here would fail of.
    """
    checkpoint = getattr(mirror, side) / "checkpoint-1"
    checkpoint.mkdir()
    snapshot = checkpoint / "sae_features.jsonl"
    snapshot.write_text("{}\n")
    refused = pytest.raises(OSError, match="not empty")
    with snapshot.open(), refused if side == "mount" else contextlib.nullcontext():
        shutil.rmtree(checkpoint)


@pytest.mark.parametrize("side", ["backing", "mount"])
def test_checkpoints_are_removed_under_followers_on_the_mount(mirror: Mirror, side: str) -> None:
    """Rotation through the mount never fails for followers there, and they read every record.

    The writer works on the directory itself, so the kernel tells the followers of nothing and they
    see sizes late; or it works on the mount as well.
    """
    seen = mirror.mount / "run"
    life = Life(RunDirectory.at(getattr(mirror, side) / "run"))
    with contextlib.ExitStack() as stack:
        followers = [stack.enter_context(following(seen)) for _ in range(FOLLOWERS)]
        for number in range(1, CHECKPOINTS + 1):
            life.record_step(20)
            life.save()
            if number > KEPT:
                shutil.rmtree(seen / f"checkpoint-{number - KEPT}")
        life.finish()
        heard = [follower.heard() for follower in followers]

    names = {path.name for path in life.run.root.glob("checkpoint-*")}
    assert names == {f"checkpoint-{CHECKPOINTS - back}" for back in range(KEPT)}
    for said in heard:
        assert delivered(said) == [(r.step, r.completion) for r in life.everything]
        assert not {each.kind for each in said} & {"Reset", "Corrupt"}


def test_a_run_is_followed_on_the_directory_and_written_on_the_mount(mirror: Mirror) -> None:
    """The other way round: a reader beside the server, a writer that is a client of it."""
    life = Life(RunDirectory.at(mirror.mount / "run"))
    with following(mirror.backing / "run") as follower:
        for _ in range(CHECKPOINTS):
            life.record_step(20)
            life.save()
        life.finish()
        said = follower.heard()
    assert delivered(said) == [(r.step, r.completion) for r in life.everything]


class Watched(Disk):
    """A disk that notes what is read, and lets something happen after so many listings.

    Attributes:
        opened: every file that was opened to be read.
    """

    def __init__(self, happens: Callable[[], object] = int, *, after: int = 0) -> None:
        super().__init__()
        self.opened: set[Path] = set()
        self._happens = happens
        self._listings = after

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Read a file, and note it."""
        self.opened.add(path)
        return super().read(path, offset=offset, size=size, head=head)

    def names(self, directory: Path) -> list[str]:
        """List a directory."""
        found = super().names(directory)
        self._listings -= 1
        if self._listings == 0:
            self._happens()
        return found


def in_checkpoints(disk: Watched) -> list[Path]:
    """Return what was opened inside of checkpoints."""
    return [path for path in disk.opened if path.parent.name.startswith("checkpoint-")]


def test_no_file_of_a_checkpoint_is_opened_that_history_keeps(tmp_path: Path) -> None:
    """However shortly a file is open, it stays behind if it is removed just then."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    disk = Watched()
    source = RunSource(on(disk, life.run), start="start")
    found = []
    for _ in range(3):
        life.record_step()
        found += drain(source)
        life.save()
    life.kill()
    life.resume("checkpoint-2")
    life.record_step()
    found += drain(source)

    assert records_in(found) == life.everything
    assert records_in(drain(RunSource(on(disk, life.run), start="start"))) == life.surviving
    assert not in_checkpoints(disk)
    life.finish()


@pytest.mark.parametrize("listing", range(1, 8))
def test_nor_one_that_is_sealed_while_a_reader_looks(tmp_path: Path, listing: int) -> None:
    """Whichever directory is listed when a checkpoint is sealed, its snapshot is left alone."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    life.save()
    life.record_step()
    disk = Watched(life.save, after=listing)
    found = drain(RunSource(on(disk, life.run), start="start"))

    assert records_in(found) == life.everything
    assert not in_checkpoints(disk)
    life.finish()
