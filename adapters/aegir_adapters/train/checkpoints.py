"""Which checkpoint a run goes on from: the newest that is whole, or the one that was named."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aegir_adapters.train.model_files import tensors_in, weight_files
from aegir_adapters.train.options import LATEST
from aegir_stream.errors import OptionError
from aegir_stream.layout import CheckpointFiles, RunDirectory

__all__ = ["Resumption", "checkpoint_faults", "resumption"]

_STATE = "trainer_state.json"
_ADAPTER = "adapter_model.safetensors"


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run goes on.

    Attributes:
        checkpoint: directory to go on from; `None` starts with step 1 again, since there is none.
        step: its step, 0 without one.
        skipped: newer checkpoints that are not whole, and what is wrong with each.
    """

    checkpoint: Path | None = None
    step: int = 0
    skipped: dict[str, list[str]] = {}


class _TrainerState(msgspec.Struct):
    global_step: int


def resumption(run: RunDirectory, chosen: str) -> Resumption:
    """Return where a run goes on.

    Args:
        run: the run.
        chosen: `latest`, or a checkpoint of this run by name or path.

    Raises:
        OptionError: the checkpoint that was named is not there, not of this run, or not whole.
    """
    if chosen == LATEST:
        return _newest_whole(run)
    checkpoints = {checkpoint.name: checkpoint for checkpoint in run.checkpoints()}
    name = Path(chosen).name
    is_elsewhere = Path(chosen).parent != Path() and (
        Path(chosen).resolve().parent != run.root.resolve()
    )
    if name not in checkpoints or is_elsewhere:
        raise OptionError(
            f"Expected a checkpoint of `{run.root}` ({', '.join(checkpoints) or 'there is none'}),"
            f" got `{chosen}`",
            hint="--resume alone takes the newest whole one",
        )
    faults = checkpoint_faults(run, checkpoints[name])
    if faults:
        raise OptionError(
            f"The checkpoint `{name}` is not whole: {'; '.join(faults)}",
            hint="--resume alone takes the newest whole one",
        )
    return Resumption(checkpoint=checkpoints[name].path, step=checkpoints[name].step)


def _newest_whole(run: RunDirectory) -> Resumption:
    skipped: dict[str, list[str]] = {}
    for checkpoint in reversed(run.checkpoints()):
        faults = checkpoint_faults(run, checkpoint)
        if not faults:
            return Resumption(checkpoint=checkpoint.path, step=checkpoint.step, skipped=skipped)
        skipped[checkpoint.name] = faults
    return Resumption(skipped=skipped)


def checkpoint_faults(run: RunDirectory, checkpoint: CheckpointFiles) -> list[str]:
    """Return what a checkpoint lacks; nothing if training can go on from it.

    A trainer writes checkpoints in place, its state last, and our sidecar after that: where all of
    them are there and as long as they say, it was not killed in between.
    """
    faults = _weight_faults(checkpoint.path) + _state_faults(checkpoint)
    for stem in ("optimizer", "scheduler", "rng_state"):
        if not any(checkpoint.path.glob(f"{stem}*")):
            faults.append(f"{stem} is missing")
    try:
        run.read_metadata(checkpoint.name)
    except (OSError, msgspec.DecodeError):
        faults.append(f"{run.cfg.metadata_filename} is missing or damaged")
    return faults


def _weight_faults(directory: Path) -> list[str]:
    # FSDP writes the shards of its ranks into a directory that ends with its own table.
    if (directory / "pytorch_model_fsdp_0" / ".metadata").is_file():
        return []
    adapter = tensors_in(directory / _ADAPTER)
    if adapter is not None:
        return [] if adapter.is_whole else [f"{_ADAPTER} is cut short"]
    _, absent = weight_files(directory)
    return [f"{name} is missing or damaged" for name in absent]


def _state_faults(checkpoint: CheckpointFiles) -> list[str]:
    try:
        content = (checkpoint.path / _STATE).read_bytes()
        state = msgspec.json.decode(content, type=_TrainerState)
    except (OSError, msgspec.DecodeError):
        return [f"{_STATE} is missing or damaged"]
    if state.global_step != checkpoint.step:
        return [f"{_STATE} is of step {state.global_step}"]
    return []
