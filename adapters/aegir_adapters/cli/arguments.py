"""What the commands have in common: the run they are about, and the records they select."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from aegir_stream.config import OUTPUT_DIR_VARIABLE, P5Cfg
from aegir_stream.errors import RunNotFoundError
from aegir_stream.layout import STREAMS, RunDirectory

__all__ = [
    "Every",
    "Features",
    "ForwardPass",
    "Layers",
    "Passes",
    "Ranks",
    "Run",
    "StepMax",
    "StepMin",
    "StreamName",
    "open_log",
    "open_run",
]


class ForwardPass(StrEnum):
    """The forward passes of a trainer (`aegir_stream.events.PassName`)."""

    LOSS = "loss"
    LOGPROB = "logprob"
    REFERENCE = "reference"
    PREFILL = "prefill"
    DECODE = "decode"
    EVAL = "eval"


Run: TypeAlias = Annotated[
    Path,
    typer.Argument(
        envvar=OUTPUT_DIR_VARIABLE,
        help="The run directory: the trainer's output_dir.",
        show_default=True,
    ),
]
DEFAULT_RUN = Path(P5Cfg().output_dir)

Layers: TypeAlias = Annotated[
    list[int] | None, typer.Option("--layer", help="Only this hooked layer; may be repeated.")
]
Features: TypeAlias = Annotated[
    list[int] | None,
    typer.Option("--feature", help="Only tokens on which this latent fired; may be repeated."),
]
Passes: TypeAlias = Annotated[
    list[ForwardPass] | None,
    typer.Option("--pass", help="Only this pass; may be repeated."),
]
Ranks: TypeAlias = Annotated[
    list[int] | None, typer.Option("--rank", help="Only this process's records; may be repeated.")
]
StepMin: TypeAlias = Annotated[int | None, typer.Option(help="First step.")]
StepMax: TypeAlias = Annotated[int | None, typer.Option(help="Last step, included.")]
Every: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Only every N-th token of each completion.")
]


class StreamName(StrEnum):
    """The streams of a run."""

    SAE_FEATURES = "sae_features"
    COMPLETIONS = "completions"
    GRPO_METRICS = "grpo_metrics"
    STEP_METRICS = "step_metrics"
    PROGRESS = "progress"


def open_log(path: Path) -> RunDirectory:
    """Return the run in a directory that holds a log.

    Raises:
        RunNotFoundError: there is no such directory, or nothing was recorded in it.
        UnreadableRunError: it may not be read.
    """
    run = open_run(path)
    if not any(run.lanes(stream) for stream in STREAMS):
        raise RunNotFoundError(
            f"Expected a run directory, got `{path}`, which holds no log",
            hint="Name the trainer's output_dir; aegir runs DIRECTORY lists the runs below one",
        )
    return run


def open_run(path: Path) -> RunDirectory:
    """Return the run in a directory.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it may not be read.
    """
    return RunDirectory.at(path).require()
