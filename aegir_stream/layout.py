"""The run directory: which file is where, and what its name says.

The only module that knows a file name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from aegir_stream import codec
from aegir_stream.config import P5Cfg
from aegir_stream.disk import Disk
from aegir_stream.errors import RunNotFoundError, UnreadableRunError
from aegir_stream.events import (
    Completion,
    Control,
    GRPOMetrics,
    Progress,
    SAELogRecord,
    Seal,
    StepMetrics,
)

__all__ = [
    "ABANDONED",
    "STREAMS",
    "UNSYNCED",
    "CheckpointFiles",
    "HistoryFile",
    "RunDirectory",
    "Stream",
    "SweepFile",
    "lane_name",
]

MANIFEST = "aegir_run.json"
LEASE = "aegir_lease.jsonl"
HISTORY = "history"
SWEEPS = "sweeps"

ABANDONED = "abandoned"
"""Label of a segment that a later attempt set aside."""

UNSYNCED = "unsynced"
"""Label of a segment that its writer left because a sync had failed; the next one goes on."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_HISTORY = re.compile(r"(\d{5,})-(.+?)(?:\.(rank\d+(?:-\d+)?))?\.jsonl")
_SWEEP = re.compile(r"(\d{5,})\.jsonl")
_TRAILER_BYTES = 4096


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """One family of events in a run.

    Attributes:
        name: key in `STREAMS`.
        kind: type of its data events.
        sealed: whether checkpoints close its segments; others are one file over all attempts.
        control_lines: whether its files carry control lines.
    """

    name: str
    kind: type[Any]
    sealed: bool = False
    control_lines: bool = True


STREAMS: Mapping[str, Stream] = {
    "sae_features": Stream(name="sae_features", kind=SAELogRecord, sealed=True),
    "completions": Stream(name="completions", kind=Completion),
    "grpo_metrics": Stream(name="grpo_metrics", kind=GRPOMetrics),
    "step_metrics": Stream(name="step_metrics", kind=StepMetrics),
    # Other programs append to and read this feed, so it holds nothing but its rows.
    "progress": Stream(name="progress", kind=Progress, control_lines=False),
}


class CheckpointFiles(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A `checkpoint-N` directory."""

    step: int
    name: str
    path: Path


class HistoryFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A closed segment under `history/`.

    `label` is its checkpoint's name, `ABANDONED` or `UNSYNCED`.
    """

    segment: int
    label: str
    path: Path


class SweepFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """The file of a patch sweep under `sweeps/`; `sweep` is the name of the sweep."""

    number: int
    sweep: str
    path: Path


def lane_name(rank: int, *, writer: int = 1) -> str:
    """Return the lane of the `writer`-th process that writes as `rank`."""
    return f"rank{rank}" if writer == 1 else f"rank{rank}-{writer}"


class _Attempt(msgspec.Struct):
    attempt: int = 0


class _Manifest(msgspec.Struct):
    """What a manifest must look like where it says anything."""

    run_id: str = ""
    attempts: list[_Attempt] = []


class RunDirectory:
    """One run's files. Holds no state but its configuration: every call looks at the disk.

    Args:
        cfg: directory and file names.
        disk: the file system.
    """

    def __init__(self, cfg: P5Cfg, *, disk: Disk | None = None) -> None:
        self.cfg = cfg
        self.disk = disk or Disk()
        self.root = Path(cfg.output_dir)

    @classmethod
    def at(cls, path: str | Path) -> RunDirectory:
        """Return the run in a directory, under the default file names."""
        return cls(P5Cfg(output_dir=str(path)))

    @property
    def manifest_path(self) -> Path:
        """Path of `aegir_run.json`."""
        return self.root / MANIFEST

    @property
    def lease_path(self) -> Path:
        """Path of `aegir_lease.jsonl`, whose lock the trainer of the run holds."""
        return self.root / LEASE

    @property
    def history_path(self) -> Path:
        """Path of the directory of closed segments."""
        return self.root / HISTORY

    @property
    def sweeps_path(self) -> Path:
        """Path of the directory of patch sweeps."""
        return self.root / SWEEPS

    def require(self) -> RunDirectory:
        """Return this run if its directory can be read.

        Raises:
            RunNotFoundError: there is no such directory.
            UnreadableRunError: it is there, and this process may not read it.
        """
        if not self.disk.is_directory(self.root):
            raise RunNotFoundError(
                f"Expected a run directory, got `{self.root}`, which does not exist",
                hint="Name the trainer's output_dir, as an argument or in AEGIR_P5_OUTPUT_DIR",
            )
        try:
            self.disk.names(self.root)
        except PermissionError as error:
            raise UnreadableRunError(
                f"The run directory `{self.root}` cannot be read by this user",
                hint=f"Grant access to it, for example: chmod a+rX '{self.root}'",
            ) from error
        return self

    # -- names -----------------------------------------------------------------------------------

    def live(self, stream: str, lane: str = "rank0") -> Path:
        """Path of the file that the writer of a lane appends to."""
        return self.root / _in_lane(self._file_name(stream), lane)

    def snapshot(self, checkpoint: str, lane: str = "rank0") -> Path:
        """Path of a checkpoint's snapshot of the SAE records."""
        return self.root / checkpoint / _in_lane(self.cfg.sae_log_filename, lane)

    def closed(self, segment: int, label: str, lane: str = "rank0") -> Path:
        """Path under `history/` of a closed segment."""
        return self.history_path / _in_lane(f"{segment:05d}-{label}.jsonl", lane)

    def _file_name(self, stream: str) -> str:
        if stream == "sae_features":
            return self.cfg.sae_live_log_filename
        if stream == "grpo_metrics":
            return self.cfg.grpo_metrics_filename
        return f"{stream}.jsonl"

    # -- what is there -----------------------------------------------------------------------------

    def lanes(self, stream: str) -> list[str]:
        """Return the lanes that have written to a stream, in order of rank."""
        found = _lanes_of(self._file_name(stream), self.disk.names(self.root))
        if STREAMS[stream].sealed:
            history = self.disk.names(self.history_path)
            found |= {m[3] or "rank0" for m in map(_HISTORY.fullmatch, history) if m}
            for checkpoint in self.checkpoints()[-1:]:
                names = self.disk.names(checkpoint.path)
                found |= _lanes_of(self.cfg.sae_log_filename, names)
        return sorted(found, key=_lane_order)

    def live_files(self, stream: str, names: list[str]) -> list[Path]:
        """Return the live files of a stream among the names in this directory, in order of lane."""
        lanes = _lanes_of(self._file_name(stream), names)
        return [self.live(stream, lane) for lane in sorted(lanes, key=_lane_order)]

    def newest_step(self, names: list[str]) -> int | None:
        """Return the step of the newest checkpoint among the names in this directory."""
        matches = map(_CHECKPOINT.fullmatch, names)
        return max((int(match[1]) for match in matches if match), default=None)

    def is_run(self, names: list[str]) -> bool:
        """Tell whether a directory in which `names` stand is a run, of ours or of a plain trainer.

        Other streams are no sign: their files have names that anything may have.
        """
        if any(name == MANIFEST or _CHECKPOINT.fullmatch(name) for name in names):
            return True
        signs = ("sae_features", "progress")
        return any(_lanes_of(self._file_name(stream), names) for stream in signs)

    def history(self, lane: str = "rank0") -> list[HistoryFile]:
        """Return the closed segments of a lane, oldest first."""
        files = []
        for name in self.disk.names(self.history_path):
            match = _HISTORY.fullmatch(name)
            if match and (match[3] or "rank0") == lane:
                path = self.history_path / name
                files.append(HistoryFile(segment=int(match[1]), label=match[2], path=path))
        return sorted(files)

    def sweeps(self) -> list[SweepFile]:
        """Return the files of the patch sweeps, oldest first."""
        names = set(self.disk.names(self.sweeps_path))
        matches = map(_SWEEP.fullmatch, names)
        files = [self.sweep_file(int(match[1])) for match in matches if match]
        return sorted(file for file in files if file.path.name in names)

    def sweep_file(self, number: int) -> SweepFile:
        """Return the file of the sweep with a number, whether it is there or not."""
        sweep = f"{number:05d}"
        return SweepFile(number=number, sweep=sweep, path=self.sweeps_path / f"{sweep}.jsonl")

    def checkpoints(self) -> list[CheckpointFiles]:
        """Return the checkpoint directories in the order of their steps."""
        matches = map(_CHECKPOINT.fullmatch, self.disk.names(self.root))
        return sorted(
            CheckpointFiles(step=int(m[1]), name=m[0], path=self.root / m[0]) for m in matches if m
        )

    def snapshots(self, checkpoint: CheckpointFiles) -> list[Path]:
        """Return the paths of a checkpoint's snapshots of the SAE records, in order of rank."""
        return [self.snapshot(checkpoint.name, lane) for lane in self._snapshot_lanes(checkpoint)]

    def snapshot_records(self, checkpoint: CheckpointFiles) -> int:
        """Return the number of SAE records in a checkpoint's snapshots, over all lanes.

        Taken from each file's seal; a file without one is counted. Read under `history/` where it
        is there: on network file systems a file that is open in a checkpoint's directory, however
        shortly, makes its removal fail.

        Raises:
            OSError: a snapshot cannot be read.
        """
        lanes = self._snapshot_lanes(checkpoint)
        return sum(self._records_in(self._kept_snapshot(checkpoint, lane)) for lane in lanes)

    def _snapshot_lanes(self, checkpoint: CheckpointFiles) -> list[str]:
        lanes = _lanes_of(self.cfg.sae_log_filename, self.disk.names(checkpoint.path))
        return sorted(lanes, key=_lane_order)

    def _kept_snapshot(self, checkpoint: CheckpointFiles, lane: str) -> Path:
        """Return another name of a snapshot, or its own where it has no other."""
        kept = [file.path for file in self.history(lane) if file.label == checkpoint.name]
        return kept[-1] if kept else self.snapshot(checkpoint.name, lane)

    def _records_in(self, path: Path) -> int:
        seal = self.seal_of(path)
        if seal:
            return seal.records
        return sum(not codec.is_control(line) for line in self.disk.lines(path))

    def seal_of(self, path: Path) -> Seal | None:
        """Return the seal that ends a segment, or `None` if it is not sealed.

        Raises:
            OSError: the file cannot be read.
        """
        ending = self.ending_of(path)
        return ending if isinstance(ending, Seal) else None

    def ending_of(self, path: Path) -> Control | None:
        """Return the control line that a file ends with, or `None` if it ends with another line.

        Raises:
            OSError: the file cannot be read.
        """
        size = self.disk.read(path, offset=0, size=0).size
        tail = self.disk.read(path, offset=max(0, size - _TRAILER_BYTES), size=_TRAILER_BYTES).data
        last = tail[:-1].rpartition(b"\n")[2]
        return codec.decode_control(last) if tail.endswith(b"\n") else None

    # -- sidecars ----------------------------------------------------------------------------------

    def read_manifest(self) -> dict[str, Any]:
        """Return `aegir_run.json`, or an empty mapping where there is none yet.

        Raises:
            OSError: it cannot be read.
            msgspec.DecodeError: it is no JSON object, or none of a run.
            UnicodeDecodeError: it is no text.
        """
        try:
            manifest = _object(self.disk.load(self.manifest_path))
        except FileNotFoundError:
            return {}
        msgspec.convert(manifest, _Manifest)
        return manifest

    def ensure_manifest(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create `aegir_run.json` unless a process was quicker; return what stands there."""
        self.disk.create(self.manifest_path, _pretty(manifest))
        return self.read_manifest()

    def set_manifest_aside(self) -> None:
        """Keep a damaged manifest under another name, which makes room for a new one."""
        names = self.disk.names(self.root)
        number = sum(name.startswith(f"{MANIFEST}.damaged-") for name in names) + 1
        self.disk.replace(self.manifest_path, self.root / f"{MANIFEST}.damaged-{number}")

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace `aegir_run.json` atomically."""
        self.disk.write(self.manifest_path, _pretty(manifest))

    def read_metadata(self, checkpoint: str) -> dict[str, Any]:
        """Return a checkpoint's sidecar.

        Raises:
            OSError: it is missing or cannot be read.
            msgspec.DecodeError: it is no JSON object.
        """
        return _object(self.disk.load(self.root / checkpoint / self.cfg.metadata_filename))

    def write_metadata(self, checkpoint: str, metadata: Mapping[str, Any]) -> None:
        """Replace a checkpoint's sidecar atomically."""
        directory = self.root / checkpoint
        self.disk.make_directory(directory)
        self.disk.write(directory / self.cfg.metadata_filename, _pretty(metadata))


def _in_lane(name: str, lane: str) -> str:
    if lane == "rank0":
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{lane}{dot}{suffix}" if dot else f"{name}.{lane}"


def _lanes_of(name: str, names: list[str]) -> set[str]:
    """Return the lanes whose variant of the file `name` is among `names`."""
    stem, dot, suffix = name.rpartition(".")
    ending = re.escape(f"{dot}{suffix}")
    pattern = re.compile(rf"{re.escape(stem)}(?:\.(rank\d+(?:-\d+)?))?{ending}")
    return {match[1] or "rank0" for match in map(pattern.fullmatch, names) if match}


def _lane_order(lane: str) -> tuple[int, int]:
    rank, _, writer = lane.removeprefix("rank").partition("-")
    return int(rank), int(writer or 1)


def _object(content: bytes) -> dict[str, Any]:
    return msgspec.json.decode(content, type=dict[str, Any])


def _pretty(payload: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(payload), indent=2) + b"\n"
