"""What a run was started with, kept beside its log, so that a resume needs no option again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aegir_adapters.train.preset import Preset
from aegir_stream.disk import Disk
from aegir_stream.errors import UnreadableRunError

__all__ = ["TrainingRecord", "read_record", "record_path", "write_record"]


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was started with.

    Attributes:
        policy_preset: name or path of the preset.
        preset: all of it, with what the command line changed.
    """

    policy_preset: str
    preset: Preset


def record_path(output_dir: Path) -> Path:
    """Return where the record of a run lies."""
    return output_dir / "aegir_train.json"


def read_record(output_dir: Path) -> TrainingRecord | None:
    """Return the record of a run, `None` if there is none.

    Raises:
        UnreadableRunError: it is damaged.
    """
    path = record_path(output_dir)
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainingRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise UnreadableRunError(
            f"{error} - in {path}", hint="Remove it, and name the preset again: --policy-preset"
        ) from error


def write_record(output_dir: Path, record: TrainingRecord) -> None:
    """Write down what a run was started with; the file appears whole or not at all."""
    content = msgspec.json.format(msgspec.json.encode(record), indent=2)
    Disk().write(record_path(output_dir), content + b"\n")
