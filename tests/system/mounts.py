"""Mounts to test on. What this machine does not allow is skipped, and the reason is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TMPFS_BYTES = 256 << 10


class Mirror(NamedTuple):
    """A directory, and a mount on which it is seen as over a network.

    The kernel tells nobody on one side what is done on the other, and a file that is removed on the
    mount while it is open there stays behind under another name, as on NFS.

    Attributes:
        backing: the directory itself.
        mount: where it is mounted.
    """

    backing: Path
    mount: Path


@contextlib.contextmanager
def mirrored(directory: Path) -> Iterator[Mirror]:
    """Mount a directory by bindfs, which stands in for NFS."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed: apt-get install bindfs")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened here")
    sides = Mirror(directory / "backing", directory / "mount")
    for side in sides:
        side.mkdir()
    _mount("bindfs", "--no-allow-other", *map(str, sides))
    try:
        yield sides
    finally:
        _unmount_fuse(sides.mount)


@contextlib.contextmanager
def small_tmpfs(directory: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB."""
    small = directory / "small"
    small.mkdir()
    _mount("mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(small))
    try:
        yield small
    finally:
        # Lazily: a test that failed may have left a file open there.
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def _mount(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"`{' '.join(command)}` is not allowed here: {done.stderr.strip()}")


def _unmount_fuse(mount: Path) -> None:
    tool = next(filter(shutil.which, ("fusermount3", "fusermount")), None)
    command = [tool, "-u", "-z"] if tool else ["umount", "--lazy"]
    subprocess.run([*command, str(mount)], check=True)
