"""`aegir sweep`: where in a model a difference between two prompts is, by layer and token."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from aegir_adapters.cli.extras import require
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.cli.sweep_asking import Asked, check, request
from aegir_adapters.cli.sweep_display import Display, JSONLines, LivePicture
from aegir_adapters.cli.sweep_latents import read_latent, sae_name
from aegir_adapters.cli.sweep_model import LATEST, Subject, find_subject, load
from aegir_adapters.cli.sweep_options import (
    SAE,
    Alpha,
    Answer,
    AnswerIds,
    AsJSON,
    Checkpoint,
    Clean,
    CleanIds,
    Device,
    Foil,
    FoilIds,
    Groups,
    Hooks,
    Latent,
    Layers,
    Metric,
    MetricName,
    Model,
    OutputDirectory,
    Pairs,
    Positions,
    Preview,
    Prompt,
    PromptIds,
)
from aegir_adapters.cli.sweep_prompts import read_pairs, text_or_ids
from aegir_adapters.cli.sweep_saes import LoadedSAE, find_sae
from aegir_adapters.cli.sweep_telling import about, with_latent
from aegir_adapters.train import Interruption
from aegir_stream.errors import OptionError, UnreadableRunError
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import SweepStarted
from aegir_stream.sweep_log import SweepLog

if TYPE_CHECKING:
    from aegir_adapters.patching.model import PatchableModel
    from aegir_adapters.patching.recording import About
    from aegir_adapters.patching.request import PatchSweepRequest
    from aegir_adapters.patching.service import PatchService

__all__ = ["sweep"]

_WRONG_COMMAND_LINE = 2


def sweep(
    model: Model,
    *,
    prompt: Prompt = None,
    clean: Clean = None,
    answer: Answer = None,
    foil: Foil = None,
    prompt_ids: PromptIds = None,
    clean_ids: CleanIds = None,
    answer_ids: AnswerIds = None,
    foil_ids: FoilIds = None,
    pairs: Pairs = None,
    hooks: Hooks = None,
    layers: Layers = None,
    positions: Positions = "all",
    groups: Groups = None,
    latent: Latent = None,
    sae: SAE = None,
    metric: Metric = None,
    alpha: Alpha = 1.0,
    preview: Preview = False,
    checkpoint: Checkpoint = LATEST,
    device: Device = "cpu",
    output_dir: OutputDirectory = None,
    as_json: AsJSON = False,
) -> None:
    """Patch a prompt's activations, one after the other, and show what each brings back.

    Two prompts that differ in little, and an answer that only the clean one
    leads to: each cell says how much of it comes back when the patched prompt
    gets that one activation of the clean one. The record lies in the run, and
    its page draws it, too.

    Example: aegir sweep runs/demo-1 --prompt "61 35 =>" --clean "20 35 =>" --answer SPACE
    """
    interruption = Interruption()
    try:
        asked = Asked(
            prompt=text_or_ids("prompt", prompt, prompt_ids),
            answer=text_or_ids("answer", answer, answer_ids),
            clean=text_or_ids("clean", clean, clean_ids),
            foil=text_or_ids("foil", foil, foil_ids),
            pairs=None if pairs is None else read_pairs(pairs),
            hooks=hooks,
            layers=layers,
            positions=positions,
            groups=groups,
            metrics=_metrics(metric),
            alpha=alpha,
            preview=preview,
            latent=None if latent is None else read_latent(latent),
            sae=sae,
        )
        check(asked)
        with interruption.heard(), quiet_pipe():
            _sweep(find_subject(model, checkpoint), asked, device, output_dir, as_json=as_json)
    except OptionError as error:
        typer.secho(f"aegir: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(_WRONG_COMMAND_LINE) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted", err=True)
        raise typer.Exit(interruption.exit_code) from None


def _metrics(text: str | None) -> tuple[str, ...]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in set(MetricName):
            raise OptionError(
                f"Expected `metric` to be one or more of {', '.join(MetricName)}, got `{name}`",
                hint="Write several with commas between; the first one is drawn",
            )
    return tuple(dict.fromkeys(names))


def _sweep(
    subject: Subject, asked: Asked, device: str, output_dir: Path | None, *, as_json: bool
) -> None:
    require("torch", "transformers", extra="patching")
    run = RunDirectory.at(output_dir) if output_dir else subject.run
    _check_record(asked, run)
    is_drawn = sys.stdout.isatty() and not as_json
    console = Console()
    waiting = console.status(f"Loading {subject.name}") if is_drawn else nullcontext()
    with waiting:
        from aegir_adapters.patching.service import PatchService  # noqa: PLC0415 - takes seconds

        model = load(subject, device=device)
        sae = _sae(subject, asked, model)
        saes = (
            {} if asked.latent is None or sae is None else {sae_name(asked.latent.layer): sae.sae}
        )
        service = PatchService(model, saes=saes)
        asking = request(asked, service)
        told = about(asking, subject, service)
        if asked.latent is not None and sae is not None:
            told = with_latent(told, asking, service, latent=asked.latent, sae=sae)
    further = _run(service, asking, told, run, LivePicture(console) if is_drawn else JSONLines())
    if further:
        names = ", ".join(f"{started.metric} as sweep {started.sweep}" for started in further)
        typer.echo(f"Also recorded: {names}", err=True)


def _sae(subject: Subject, asked: Asked, model: PatchableModel) -> LoadedSAE | None:
    if asked.latent is None:
        return None
    return find_sae(subject, asked.latent.layer, model=model, path=asked.sae)


def _run(
    service: PatchService,
    asking: PatchSweepRequest,
    told: About,
    run: RunDirectory | None,
    display: Display,
) -> list[SweepStarted]:
    """Sweep, record and show it; return the records of further metrics.

    However it ends, the model and the file are let go.
    """
    from aegir_adapters.patching.metric_records import (  # noqa: PLC0415 - needs the extra
        record_further_metrics,
    )
    from aegir_adapters.patching.recording import (  # noqa: PLC0415 - needs the extra
        record_sweep,
        started_of,
    )

    with display, service.sweep(asking) as running:
        log = _begun(run, started_of(running.start, asking, told))
        record_sweep(running, log, watch=display.show)
        if run is None or asking.metrics is None:
            return []
        return record_further_metrics(run, log.grids, running.summary())


def _check_record(asked: Asked, run: RunDirectory | None) -> None:
    """Refuse further metrics that nobody would read."""
    if run is None and len(asked.metrics) > 1:
        raise OptionError(
            f"Expected one `metric` where no run takes the record, got {', '.join(asked.metrics)}",
            hint="Name a run that takes the others with --output-dir, or leave them out",
        )


def _begun(run: RunDirectory | None, started: SweepStarted) -> SweepLog:
    try:
        return SweepLog(run, started)
    except OSError as error:
        where = run.sweeps_path if run else ""
        raise UnreadableRunError(
            f"The sweep cannot be recorded in `{where}`: {error.strerror}",
            hint="Name a directory that can be written to with --output-dir",
        ) from error
