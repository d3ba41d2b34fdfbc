"""`aegir train`: a run from a preset."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.train import (
    Interruption,
    Outcome,
    Plan,
    TrainOptions,
    admit,
    load_preset,
    plan,
    preset_names,
)
from aegir_adapters.train import train as train_as_planned
from aegir_adapters.train.display import plan_report, plan_table, verdict_of
from aegir_adapters.train.options import DEFAULT_PRESET, LATEST
from aegir_stream.config import OUTPUT_DIR_VARIABLE, P5Cfg
from aegir_stream.errors import OptionError, RunExistsError, RunNotFoundError

if TYPE_CHECKING:
    from typing import Any

__all__ = ["ResumeWithoutValue", "train"]

_EXIT_CODES = {"ok": 0, "missing": 1, "refused": 2}
_WRONG_COMMAND_LINE = 2

Guard = Callable[[Path], None]


class ResumeWithoutValue(TyperCommand):
    """A command whose `--resume` may stand alone, which typer has no word for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give `--resume` its value where none follows."""
        for place, argument in enumerate(args):
            follows = args[place + 1] if place + 1 < len(args) else "-"
            if argument == "--resume" and follows.startswith("-"):
                args[place] = f"--resume={LATEST}"
        return super().parse_args(ctx, args)


def train(
    *,
    policy_preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help=f"What is trained; {DEFAULT_PRESET} for a new run, its own for a resumed one.",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help=f"Run directory. [env var: {OUTPUT_DIR_VARIABLE}] [default: {P5Cfg().output_dir}]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, those before a resume included.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of data order, sampling and new weights.")
    ] = None,
    sae_num_layers: Annotated[
        int | None, typer.Option(min=1, help="How many layers are hooked, evenly spaced.")
    ] = None,
    sae_live_spill_every_n_steps: Annotated[
        int | None, typer.Option(min=1, help="How many steps' records are appended together.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[CHECKPOINT|latest]",
            help="Go on with the run in the directory; from its newest whole checkpoint if alone.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Policy: local directory, or id on the Hugging Face Hub.")
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            help="Directory that holds layer-0 and so on, a path with {layer} in it, or a published"
            " set of SAEs: its directory, or its id on the Hugging Face Hub once it was fetched."
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE.jsonl", help='Prompts: {"prompt": "..."} on each line.'),
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Reward, as TRL calls it.")
    ] = None,
    allow_drift: Annotated[
        bool,
        typer.Option("--allow-drift", help="Resume with other SAEs, layers or another model."),
    ] = False,
    allow_download: Annotated[
        bool,
        typer.Option("--allow-download", help="Fetch the model from the hub if it is not here."),
    ] = False,
    guarded: Annotated[
        bool,
        typer.Option("--guarded", help="Refuse, in a secondary checkout, the primary's directory."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan and its checks; write nothing."),
    ] = False,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="List the presets that come along.")
    ] = False,
) -> None:
    """Train a policy by GRPO from a preset, and record it.

    Everything that is needed is checked first, and what is missing is told in one message. Ctrl-C
    and SIGTERM end the run after its step, with a checkpoint; --resume goes on.

    Example: aegir train --policy-preset tiny --output-dir runs/tiny
    """
    if list_presets:
        _list_presets()
        return
    options = TrainOptions(
        policy_preset=policy_preset,
        output_dir=output_dir,
        sae_num_layers=sae_num_layers,
        sae_live_spill_every_n_steps=sae_live_spill_every_n_steps,
        steps=steps,
        seed=seed,
        resume=resume,
        model=model,
        sae=sae,
        prompts=prompts,
        reward=reward,
        allow_drift=allow_drift,
        allow_download=allow_download,
    )
    guard = _guard if guarded else None
    interruption = Interruption()
    try:
        with interruption.heard():
            if not dry_run:
                # Before the libraries that a plan needs are loaded, which takes seconds.
                admit(options, environment=os.environ, guard=guard)
            planned = plan(options, environment=os.environ, arguments=sys.argv[2:], guard=guard)
            if not dry_run:
                _train(planned, guard, interruption)
    except (OptionError, RunExistsError, RunNotFoundError) as error:
        typer.secho(f"aegir: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(_WRONG_COMMAND_LINE) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted; a run that had begun goes on with --resume", err=True)
        raise typer.Exit(interruption.exit_code) from None
    if dry_run:
        _show(planned)
        raise typer.Exit(_EXIT_CODES[verdict_of(planned)])


def _guard(directory: Path) -> None:
    from aegir_adapters.worktree import guard_directory  # noqa: PLC0415 - beside its only use

    guard_directory(directory, environment=os.environ)


def _train(planned: Plan, guard: Guard | None, interruption: Interruption) -> None:
    from aegir_adapters.demo import reporter  # noqa: PLC0415 - beside its only use

    outcome = train_as_planned(
        planned, reporter=reporter(sys.stdout), interruption=interruption, guard=guard
    )
    if planned.group.rank == 0:
        _tell(outcome)
    if outcome.status == "stopped":
        raise typer.Exit(interruption.exit_code)


def _tell(outcome: Outcome) -> None:
    reward = "" if outcome.reward is None else f", reward {outcome.reward:.2f}"
    records = f"{outcome.records:,} records, {outcome.dropped:,} dropped"
    typer.echo(f"Step {outcome.step} of {outcome.steps}{reward}; {records}; {outcome.output_dir}")
    directory = shlex.quote(str(outcome.output_dir))
    if outcome.status == "stopped":
        typer.echo(f"Go on with: aegir train --resume --output-dir {directory}")
    else:
        typer.echo(f"Look at it with: aegir serve {directory}")


def _show(planned: Plan) -> None:
    if sys.stdout.isatty():
        Console().print(plan_table(planned))
        return
    with quiet_pipe():
        report = msgspec.json.encode(plan_report(planned))
        sys.stdout.write(msgspec.json.format(report, indent=2).decode() + "\n")


def _list_presets() -> None:
    presets = {name: load_preset(name) for name in preset_names()}
    if not sys.stdout.isatty():
        with quiet_pipe():
            for name, preset in presets.items():
                row = {"name": name, **msgspec.to_builtins(preset)}
                sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    table = Table("preset", "devices", "what it trains", box=SIMPLE_HEAD, pad_edge=False)
    for name, preset in presets.items():
        count, kind = preset.devices.count, preset.devices.kind
        table.add_row(name, f"{count} {kind}", preset.summary)
    Console().print(table)
