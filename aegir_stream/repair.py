"""Write a clean copy of a run and leave the run itself alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from aegir_stream.appends import Tally
from aegir_stream.disk import AppendHandle
from aegir_stream.errors import OptionError, RunExistsError
from aegir_stream.events import SCHEMA
from aegir_stream.inventory import Content, LogFile, log_files
from aegir_stream.layout import RunDirectory
from aegir_stream.lineage import read_header
from aegir_stream.mending import mend
from aegir_stream.verification import check_file

__all__ = ["Repaired", "repair"]


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair has copied.

    Attributes:
        files: number of files with records; several names of one file count once.
        mended: number of them that are not copies byte for byte.
        records: records that they hold.
    """

    files: int
    mended: int
    records: int


def repair(run: RunDirectory, *, to: str | Path) -> Repaired:
    """Write a clean copy of a run into a fresh directory.

    Files in which nothing is wrong are copied byte for byte. Of the others everything that can be
    trusted is: appends that agree with their checksum, and whole lines that a killed writer left
    without one; what is left out becomes a `Gap`, and seals count what is there. A snapshot and its
    segment under `history/` are one file again. Manifest and sidecars are copied, nothing else.

    The run is only read. Nobody should be writing it: what is appended meanwhile is left out.

    Args:
        run: the run.
        to: directory of the copy, which must not exist or be empty.

    Raises:
        RunNotFoundError: there is no such run.
        UnreadableRunError: it cannot be read.
        RunExistsError: `to` holds something already.
        OptionError: `to` lies in the run.
        OSError: a file cannot be read, or the copy not be written.
    """
    target = _fresh(run.require(), Path(to))
    repairing = _Repairing(run, target)
    for file in log_files(run):
        with contextlib.suppress(FileNotFoundError):  # sealed or rotated away meanwhile
            repairing.copy(file)
    repairing.copy_sidecars()
    return repairing.result()


class _Repairing:
    """A copy of a run that is being written."""

    def __init__(self, run: RunDirectory, target: RunDirectory) -> None:
        self._run = run
        self._target = target
        self._copies: dict[tuple[int, int], Path] = {}
        self._mended = 0
        self._records = 0

    def copy(self, file: LogFile) -> None:
        """Copy a file with records, or give its copy one more name."""
        content = Content.of(self._run.disk, file.path)
        target = self._place(file.path)
        if copied := self._copies.get(content.inode):
            self._run.disk.share(copied, target)
            return
        file = msgspec.structs.replace(file, growing=False)
        total = Tally()
        whole = not any(True for _ in check_file(file, content, total))
        with contextlib.closing(self._run.disk.append(target, exclusive=True)) as copy:
            if whole:
                _copy(content, copy)
            else:
                total = mend(file, content, copy)
        self._copies[content.inode] = target
        self._mended += not whole
        self._records += total.records

    def copy_sidecars(self) -> None:
        """Copy the manifest and the checkpoints' sidecars, as far as they can be read."""
        run = self._run
        if not self._copy_object(run.manifest_path, run.read_manifest):
            self._target.write_manifest(self._new_manifest())
        for checkpoint in run.checkpoints():
            path = checkpoint.path / run.cfg.metadata_filename
            self._copy_object(path, functools.partial(run.read_metadata, checkpoint.name))

    def result(self) -> Repaired:
        return Repaired(files=len(self._copies), mended=self._mended, records=self._records)

    def _copy_object(self, path: Path, read: Callable[[], dict[str, Any]]) -> bool:
        """Copy a file that holds a JSON object; `False` if it holds none."""
        try:
            read()
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        except FileNotFoundError:
            return True
        if self._run.disk.exists(path):
            self._run.disk.write(self._place(path), self._run.disk.load(path))
        return True

    def _new_manifest(self) -> dict[str, Any]:
        """Return a manifest in the place of a damaged one, with what the log says."""
        headers = (read_header(self._target, path) for path in self._copies.values())
        log = next((header.log for header in headers if header), "0")
        return {"run_id": log, "schema": SCHEMA, "attempts": []}

    def _place(self, path: Path) -> Path:
        place = self._target.root / path.relative_to(self._run.root)
        self._run.disk.make_directory(place.parent)
        return place


def _fresh(run: RunDirectory, to: Path) -> RunDirectory:
    """Return the run that is to be written.

    Raises:
        RunExistsError: something is there.
        OptionError: it lies in the run that is read.
    """
    if to.resolve().is_relative_to(run.root.resolve()):
        raise OptionError(
            f"Expected a directory outside of the run `{run.root}`, got `{to}`",
            hint="The run is left as it is; name a directory beside it",
        )
    if run.disk.exists(to) and (not run.disk.is_directory(to) or run.disk.names(to)):
        raise RunExistsError(
            f"Expected a directory that is empty or does not exist, got `{to}`",
            hint="Name another one for the copy",
        )
    run.disk.make_directory(to)
    return RunDirectory(msgspec.structs.replace(run.cfg, output_dir=str(to)), disk=run.disk)


def _copy(content: Content, copy: AppendHandle) -> None:
    for piece in content.pieces(0, content.size):
        written = 0
        while written < len(piece):
            written += copy.write(memoryview(piece)[written:])
