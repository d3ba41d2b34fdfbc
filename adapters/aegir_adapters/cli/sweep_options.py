"""What `aegir sweep` may be told, and what its help says of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from aegir_adapters.cli.sweep_asking import HOOK_OF_LATENTS, HOOKS
from aegir_stream.config import OUTPUT_DIR_VARIABLE

__all__ = [
    "SAE",
    "Alpha",
    "Answer",
    "AnswerIds",
    "AsJSON",
    "Checkpoint",
    "Clean",
    "CleanIds",
    "Device",
    "Foil",
    "FoilIds",
    "Groups",
    "Hooks",
    "Latent",
    "Layers",
    "Metric",
    "MetricName",
    "Model",
    "OutputDirectory",
    "Pairs",
    "Positions",
    "Preview",
    "Prompt",
    "PromptIds",
]

_IDS = "token ids, such as 61,35,4"
_PROMPTS, _PATCHED, _MEASURED = "Prompts", "What is patched", "What is measured"

Model: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|MODEL",
        envvar=OUTPUT_DIR_VARIABLE,
        help="A run, of which a checkpoint is taken, or a model directory.",
    ),
]
Checkpoint: TypeAlias = Annotated[
    str, typer.Option(metavar="STEP|NAME|latest", help="Which checkpoint of a run.")
]


class MetricName(StrEnum):
    """What a cell of a sweep may hold."""

    RECOVERED = "recovered"
    RECOVERED_LOGIT_DIFF = "recovered_logit_diff"
    LOGPROB = "logprob"
    LOGIT_DIFF = "logit_diff"
    KL = "kl"
    RANK = "rank"


Prompt: TypeAlias = Annotated[
    str | None, typer.Option(rich_help_panel=_PROMPTS, help="The prompt that is patched.")
]

Clean: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PROMPTS,
        help="The prompt whose activations are put in; zeros are if absent.",
    ),
]

Answer: TypeAlias = Annotated[
    str | None, typer.Option(rich_help_panel=_PROMPTS, help="What is measured.")
]

Foil: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PROMPTS, help="What the answer is compared with; as many tokens."
    ),
]

PromptIds: TypeAlias = Annotated[
    str | None, typer.Option(rich_help_panel=_PROMPTS, help=f"The prompt as {_IDS}.")
]

CleanIds: TypeAlias = Annotated[
    str | None, typer.Option(rich_help_panel=_PROMPTS, help="Likewise the clean prompt.")
]

AnswerIds: TypeAlias = Annotated[
    str | None, typer.Option(rich_help_panel=_PROMPTS, help="Likewise the answer.")
]

FoilIds: TypeAlias = Annotated[
    str | None, typer.Option(rich_help_panel=_PROMPTS, help="Likewise the foil.")
]

Pairs: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PROMPTS,
        metavar="FILE|-",
        help='Several prompts, of which the mean is drawn: JSON lines such as {"prompt": ..., '
        '"clean_prompt": ..., "answer": ..., "foil": ...}.',
    ),
]

Hooks: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PATCHED,
        help="Where to patch: resid_pre, resid_mid, attn_out, mlp_out, z.3 ...",
        show_default=f"{HOOKS}; {HOOK_OF_LATENTS} with --latent",
    ),
]

Layers: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PATCHED,
        help="Such as all, 0:4 or 2,-1.",
        show_default="all; that of the SAE with --latent",
    ),
]

Positions: TypeAlias = Annotated[
    str, typer.Option(rich_help_panel=_PATCHED, help="Likewise, of the patched prompt.")
]

Groups: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PATCHED,
        metavar="NAME=POSITIONS;...",
        help="Positions that are patched together, a column for each group: subject=3:5;last=-1"
        ' or, by the text, subject="John Smith".',
    ),
]

Latent: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PATCHED,
        metavar="LAYER:INDEX",
        help="Patch one latent of an SAE, what the SAE misses left as it is: as strong as in "
        "the clean prompt, or to zero without one.",
    ),
]

SAE: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PATCHED,
        metavar="PATH",
        help="The latent's SAE; the one that the run was recorded with if absent.",
    ),
]

Metric: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_MEASURED,
        metavar="NAME,...",
        help=f"What a cell holds: {', '.join(MetricName)}; several are recorded as a sweep "
        "each. The share that is recovered if there are two prompts.",
    ),
]

Alpha: TypeAlias = Annotated[
    float, typer.Option(rich_help_panel=_PATCHED, help="How much of an activation is replaced.")
]

Preview: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--preview",
        rich_help_panel=_MEASURED,
        help="Estimate every cell from one gradient in place of computing it.",
    ),
]

Device: TypeAlias = Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")]

OutputDirectory: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Run that takes the record; that of the checkpoint if absent."),
]

AsJSON: TypeAlias = Annotated[
    bool, typer.Option("--json", help="One JSON object a line, as in a pipe; else a picture.")
]
