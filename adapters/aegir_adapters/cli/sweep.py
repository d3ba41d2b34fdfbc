"""`aegir sweep`: where in a model a difference between two prompts is, by layer and token."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from aegir_adapters.cli.extras import require
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.cli.sweep_asking import Asked, about, request
from aegir_adapters.cli.sweep_display import Display, JSONLines, LivePicture
from aegir_adapters.cli.sweep_lines import About, cell_of, ended_of, started_of
from aegir_adapters.cli.sweep_model import LATEST, Subject, find_subject, load
from aegir_adapters.train import Interruption
from aegir_stream.config import OUTPUT_DIR_VARIABLE
from aegir_stream.errors import OptionError, UnreadableRunError
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import SweepStarted
from aegir_stream.sweep_log import SweepLog

if TYPE_CHECKING:
    from aegir_adapters.patching.request import PatchSweepRequest
    from aegir_adapters.patching.service import PatchService

__all__ = ["Checkpoint", "MetricName", "Model", "sweep"]

_WRONG_COMMAND_LINE = 2

Model = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|MODEL",
        envvar=OUTPUT_DIR_VARIABLE,
        help="A run, of which a checkpoint is taken, or a model directory.",
    ),
]
Checkpoint = Annotated[
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


def sweep(
    model: Model,
    *,
    prompt: Annotated[str, typer.Option(help="The prompt that is patched.")],
    answer: Annotated[str, typer.Option(help="What is measured.")],
    clean: Annotated[
        str | None,
        typer.Option(help="The prompt whose activations are put in; zeros are if absent."),
    ] = None,
    foil: Annotated[
        str | None, typer.Option(help="What the answer is compared with; as many tokens.")
    ] = None,
    hooks: Annotated[
        str, typer.Option(help="Where to patch: resid_pre, resid_mid, attn_out, mlp_out, z.3 ...")
    ] = "resid_pre,attn_out,mlp_out",
    layers: Annotated[str, typer.Option(help="Such as all, 0:4 or 2,-1.")] = "all",
    positions: Annotated[str, typer.Option(help="Likewise, of the patched prompt.")] = "all",
    metric: Annotated[
        MetricName | None,
        typer.Option(
            help="What a cell holds; the share that is recovered if there are two prompts."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="How much of an activation is replaced.")] = 1.0,
    checkpoint: Checkpoint = LATEST,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Run that takes the record; that of the checkpoint if absent."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as in a pipe; else a picture.")
    ] = False,
) -> None:
    """Patch a prompt's activations, one after the other, and show what each brings back.

    Two prompts that differ in little, and an answer that only the clean one
    leads to: each cell says how much of it comes back when the patched prompt
    gets that one activation of the clean one. The record lies in the run, and
    its page draws it, too.

    Example: aegir sweep runs/demo-1 --prompt "61 35 =>" --clean "20 35 =>" --answer SPACE
    """
    asked = Asked(
        prompt=prompt,
        answer=answer,
        clean=clean,
        foil=foil,
        hooks=tuple(hook.strip() for hook in hooks.split(",")),
        layers=layers,
        positions=positions,
        metric=metric.value if metric else None,
        alpha=alpha,
    )
    interruption = Interruption()
    try:
        with interruption.heard(), quiet_pipe():
            _sweep(find_subject(model, checkpoint), asked, device, output_dir, as_json=as_json)
    except OptionError as error:
        typer.secho(f"aegir: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(_WRONG_COMMAND_LINE) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted", err=True)
        raise typer.Exit(interruption.exit_code) from None


def _sweep(
    subject: Subject, asked: Asked, device: str, output_dir: Path | None, *, as_json: bool
) -> None:
    require("torch", "transformers", extra="patching")
    is_drawn = sys.stdout.isatty() and not as_json
    console = Console()
    waiting = console.status(f"Loading {subject.name}") if is_drawn else nullcontext()
    with waiting:
        from aegir_adapters.patching.service import PatchService  # noqa: PLC0415 - takes seconds

        service = PatchService(load(subject, device=device))
        asking, told = request(asked, service), about(asked, subject, service)
    run = RunDirectory.at(output_dir) if output_dir else subject.run
    _run(service, asking, told, run, LivePicture(console) if is_drawn else JSONLines())


def _run(
    service: PatchService,
    asking: PatchSweepRequest,
    told: About,
    run: RunDirectory | None,
    display: Display,
) -> None:
    """Sweep, record and show it; however it ends, the model and the file are let go."""
    with display, service.sweep(asking) as running:
        log = _begun(run, started_of(running.start, asking, told))
        try:
            with log:
                display.show([log.started], log.grids)
                for batch in running.batches():
                    cells = [cell_of(cell) for cell in batch]
                    log.append(cells)
                    display.show(cells, log.grids)
                log.end(ended_of(running.summary()))
        finally:
            display.show([log.grids.ended] if log.grids.ended else [], log.grids)


def _begun(run: RunDirectory | None, started: SweepStarted) -> SweepLog:
    try:
        return SweepLog(run, started)
    except OSError as error:
        where = run.sweeps_path if run else ""
        raise UnreadableRunError(
            f"The sweep cannot be recorded in `{where}`: {error.strerror}",
            hint="Name a directory that can be written to with --output-dir",
        ) from error
