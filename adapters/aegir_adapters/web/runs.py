"""The table of checkpoints of a run."""

from __future__ import annotations

from typing import Any

import msgspec

from aegir_stream.layout import CheckpointFiles, RunDirectory

__all__ = ["CheckpointRow", "RunTable", "read_run_table"]


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


def read_run_table(run: RunDirectory) -> RunTable:
    """Look at every checkpoint of a run. Reads files; never fails."""
    try:
        rows = [_row(run, checkpoint) for checkpoint in run.require().checkpoints()]
    except OSError as error:
        exists = not isinstance(error, FileNotFoundError)
        return RunTable(
            rows=[], count=0, p5_dir=str(run.root), p5_dir_exists=exists, reason=str(error)
        )
    return RunTable(rows=rows, count=len(rows), p5_dir=str(run.root), p5_dir_exists=True)


def _row(run: RunDirectory, checkpoint: CheckpointFiles) -> CheckpointRow:
    metadata, no_metadata = _metadata(run, checkpoint)
    records, no_records = _records(run, checkpoint)
    return CheckpointRow(
        step=checkpoint.step,
        checkpoint=checkpoint.name,
        metadata=metadata,
        n_sae_records=records,
        checkpoint_dir=str(checkpoint.path),
        reason="; ".join(filter(None, (no_metadata, no_records))) or msgspec.UNSET,
    )


def _metadata(
    run: RunDirectory, checkpoint: CheckpointFiles
) -> tuple[dict[str, Any] | None, str | None]:
    name = run.cfg.metadata_filename
    try:
        return run.read_metadata(checkpoint.name), None
    except FileNotFoundError:
        return None, f"{name} is not there (yet)"
    except OSError as error:
        return None, f"{name} cannot be read: {error.strerror}"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, f"{name} is no JSON object: {error}"


def _records(run: RunDirectory, checkpoint: CheckpointFiles) -> tuple[int | None, str | None]:
    try:
        return run.snapshot_records(checkpoint), None
    except OSError as error:
        return None, f"{run.cfg.sae_log_filename} cannot be read: {error.strerror}"
