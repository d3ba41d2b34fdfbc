"""The table of checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from aegir_stream.layout import CheckpointFiles, RunDirectory

__all__ = ["CheckpointRow", "CheckpointTable", "RunTable"]

_Answer: TypeAlias = tuple[dict[str, Any] | None, str | None]
"""What a sidecar holds, or why that cannot be told."""


class _Sidecar(NamedTuple):
    """What was read of a sidecar, and of which version of the file."""

    version: tuple[int, int, int]
    answer: _Answer


class CheckpointRow(msgspec.Struct, frozen=True, kw_only=True):
    """One `checkpoint-N` directory.

    Attributes:
        step: N.
        checkpoint: its name.
        metadata: payload of the sidecar; `None` when it cannot be read, see `reason`.
        n_sae_records: SAE records of all ranks in it; `None` when they cannot be counted.
        checkpoint_dir: its path.
        reason: what could not be read, and why.
    """

    step: int
    checkpoint: str
    metadata: dict[str, Any] | None
    n_sae_records: int | None
    checkpoint_dir: str
    reason: str | msgspec.UnsetType = msgspec.UNSET


class RunTable(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /api/p5/runs`.

    Attributes:
        rows: one per checkpoint, by step.
        count: number of rows.
        p5_dir: the run directory.
        p5_dir_exists: whether it is there.
        reason: why there are no rows, and the remedy, when the directory cannot be read.
    """

    rows: list[CheckpointRow]
    count: int
    p5_dir: str
    p5_dir_exists: bool
    reason: str | msgspec.UnsetType = msgspec.UNSET


class CheckpointTable:
    """Looks at the checkpoints of a run, as often as it is asked.

    Opens each sidecar once, until another one takes its place: on network file systems a file that
    is open at the moment its checkpoint is removed makes the removal fail.

    Thread safety: `read` may be called from any thread.

    Args:
        run: the run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._sidecars: dict[Path, _Sidecar] = {}

    def read(self) -> RunTable:
        """Look at every checkpoint. Reads files; never fails."""
        root = str(self._run.root)
        try:
            rows = [self._row(each) for each in self._run.require().checkpoints()]
        except OSError as error:
            exists = not isinstance(error, FileNotFoundError)
            return RunTable(rows=[], count=0, p5_dir=root, p5_dir_exists=exists, reason=str(error))
        return RunTable(rows=rows, count=len(rows), p5_dir=root, p5_dir_exists=True)

    def _row(self, checkpoint: CheckpointFiles) -> CheckpointRow:
        metadata, no_metadata = self._metadata(checkpoint)
        records, no_records = _records(self._run, checkpoint)
        return CheckpointRow(
            step=checkpoint.step,
            checkpoint=checkpoint.name,
            metadata=metadata,
            n_sae_records=records,
            checkpoint_dir=str(checkpoint.path),
            reason="; ".join(filter(None, (no_metadata, no_records))) or msgspec.UNSET,
        )

    def _metadata(self, checkpoint: CheckpointFiles) -> _Answer:
        name = self._run.cfg.metadata_filename
        path = checkpoint.path / name
        try:
            status = path.stat()
            version = status.st_ino, status.st_mtime_ns, status.st_size
            known = self._sidecars.get(path)
            if known is None or known.version != version:
                known = self._sidecars[path] = _Sidecar(version, self._read(checkpoint))
        except FileNotFoundError:
            self._sidecars.pop(path, None)
            return None, f"{name} is not there (yet)"
        except OSError as error:
            return None, f"{name} cannot be read: {error.strerror}"
        return known.answer

    def _read(self, checkpoint: CheckpointFiles) -> _Answer:
        try:
            return self._run.read_metadata(checkpoint.name), None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, f"{self._run.cfg.metadata_filename} is no JSON object: {error}"


def _records(run: RunDirectory, checkpoint: CheckpointFiles) -> tuple[int | None, str | None]:
    try:
        return run.snapshot_records(checkpoint), None
    except OSError as error:
        return None, f"{run.cfg.sae_log_filename} cannot be read: {error.strerror}"
