"""The model of a sweep: a checkpoint of a run, or any model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aegir_adapters.train.libraries import hub_offline, quiet_libraries
from aegir_adapters.train.model_files import weight_files
from aegir_stream.errors import AegirError, OptionError, RunNotFoundError
from aegir_stream.layout import CheckpointFiles, RunDirectory

if TYPE_CHECKING:
    from aegir_adapters.patching.model import PatchableModel

__all__ = ["LATEST", "ModelLoadError", "Subject", "find_subject", "load"]

LATEST = "latest"
_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"


class ModelLoadError(AegirError, OSError):
    """A model directory holds no model that can be loaded."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is swept.

    Attributes:
        path: the model directory.
        run: the run that it belongs to, if any; it takes the record of the sweep.
        checkpoint: the checkpoint of that run.
    """

    path: Path
    run: RunDirectory | None = None
    checkpoint: CheckpointFiles | None = None

    @property
    def name(self) -> str:
        """What the model is called."""
        if self.checkpoint is None:
            return self.path.name or str(self.path)
        return self.checkpoint.name


def find_subject(path: Path, checkpoint: str) -> Subject:
    """Return the model that a path names.

    Args:
        path: a run directory, a checkpoint of one, or a model directory.
        checkpoint: of a run, `latest`, a step, or the name of a checkpoint.

    Raises:
        RunNotFoundError: it is none of these, or the run has no checkpoint that can be loaded.
        OptionError: the checkpoint is not one of the run.
    """
    run = RunDirectory.at(path).require()
    if run.checkpoints():
        return _of_run(run, checkpoint)
    above = RunDirectory.at(path.absolute().parent)
    within = {one.name: one for one in above.checkpoints()}.get(path.absolute().name)
    if within is not None:
        return Subject(path=path, run=above, checkpoint=within)
    if _is_model(path):
        return Subject(path=path)
    raise RunNotFoundError(
        f"Expected a run with a checkpoint, or a model directory, got `{path}`, which has neither "
        f"a checkpoint-N nor a {_CONFIG}",
        hint="A run that trains has one as soon as its trainer has saved it",
    )


def load(subject: Subject, *, device: str) -> PatchableModel:
    """Load a model from local files only, with its tokenizer if it has one.

    Raises:
        ModelLoadError: it cannot be loaded.
        PatchingError: it cannot be patched.
    """
    import torch  # noqa: PLC0415 - needs the extra
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - likewise

    from aegir_adapters.patching.model import PatchableModel  # noqa: PLC0415 - likewise

    # Half precision is slow on a CPU, and its noise is what effects are measured against.
    dtype = torch.float32 if device == "cpu" else "auto"
    with hub_offline(), quiet_libraries():
        try:
            module: Any = AutoModelForCausalLM.from_pretrained(
                str(subject.path), local_files_only=True, dtype=dtype
            )
            module = module.to(device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first_line = str(error).partition("\n")[0]
            raise ModelLoadError(
                f"The model in `{subject.path}` cannot be loaded: {first_line}",
                hint="It needs the files of save_pretrained; choose one with --checkpoint",
            ) from error
        return PatchableModel(module, _tokenizer(subject.path))


def _of_run(run: RunDirectory, chosen: str) -> Subject:
    checkpoints = {one.name: one for one in run.checkpoints()}
    whole = [one for one in checkpoints.values() if _is_whole(one.path)]
    if chosen == LATEST:
        if not whole:
            raise RunNotFoundError(
                f"The run `{run.root}` has no checkpoint whose model is there and whole",
                hint="Wait until its trainer has saved one",
            )
        return Subject(path=whole[-1].path, run=run, checkpoint=whole[-1])
    found = checkpoints.get(chosen) or checkpoints.get(f"checkpoint-{chosen}")
    if found is None or found not in whole:
        state = "is not one of them" if found is None else "is not whole"
        raise OptionError(
            f"Expected `checkpoint` to be latest or one of "
            f"{', '.join(one.name for one in whole) or 'none'}, got `{chosen}`, which {state}",
            hint="A step will do as well: --checkpoint 80",
        )
    return Subject(path=found.path, run=run, checkpoint=found)


def _is_whole(path: Path) -> bool:
    """Tell whether the weights are there; a trainer may be writing them, or removing them."""
    if not _is_model(path):
        return False
    return (path / _ADAPTER).is_file() or not weight_files(path)[1]


def _is_model(path: Path) -> bool:
    return (path / _CONFIG).is_file() or (path / _ADAPTER).is_file()


def _tokenizer(path: Path) -> object:
    from transformers import AutoTokenizer  # noqa: PLC0415 - needs the extra

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError):
        return None  # Prompts can be given as token ids.
