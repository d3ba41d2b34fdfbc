"""A training run, from its plan to its last checkpoint."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from aegir_adapters.train.admission import require_admission
from aegir_adapters.train.functions import function_of
from aegir_adapters.train.libraries import hub_offline, quiet_libraries, torch_threads
from aegir_adapters.train.process_group import LAUNCHED_VARIABLE, process_group
from aegir_adapters.train.prompts import read_prompts
from aegir_adapters.train.record import TrainingRecord, write_record
from aegir_adapters.train.reporting import Silent
from aegir_adapters.train.requirements import require_all
from aegir_adapters.train.settings import resolve
from aegir_stream.errors import AegirError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import Lease, lease_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aegir_adapters.train.checkpoints import Resumption
    from aegir_adapters.train.interruption import Interruption
    from aegir_adapters.train.options import TrainOptions
    from aegir_adapters.train.plan import Plan
    from aegir_adapters.train.preset import Preset
    from aegir_adapters.train.reporting import Reporter
    from aegir_stream.config import P5Cfg

__all__ = ["LaunchError", "Outcome", "admit", "reinforce", "train"]


class LaunchError(AegirError, RuntimeError):
    """A launcher did not start the processes that it was asked for."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What a run came to.

    Attributes:
        status: `finished`, or `stopped` by a signal.
        step: last optimizer step.
        steps: those that were asked for.
        reward: mean reward of the last step, if it was logged.
        records: SAE records, completions and the rest, as written by this process.
        dropped: records that were captured and could not be written.
        output_dir: where the run lies.
    """

    status: Literal["finished", "stopped"]
    step: int
    steps: int
    reward: float | None
    records: int
    dropped: int
    output_dir: Path


def train(
    planned: Plan,
    *,
    reporter: Reporter,
    interruption: Interruption,
    guard: Callable[[Path], None] | None = None,
) -> Outcome:
    """Train as planned; where several processes are needed, become their launcher.

    Holds the lease of the run directory until the end.

    Args:
        planned: the plan.
        reporter: who is told; only by the first rank.
        interruption: hears the signals that end training in order.
        guard: raises `RefusedError` where the directory is not this checkout's to write.

    Raises:
        LeaseHeldError: another process trains into the directory; names it.
        RefusedError: the guard refuses.
        RunExistsError: the directory holds a run, and it is not to be resumed.
        RunNotFoundError: it is to be resumed, and holds none.
        UnreadableRunError: the directory cannot be made or written.
        UnmetRequirementsError: something is missing; lists all of it.
        LaunchError: a launcher did not start the processes that it was asked for.
        IdentityDriftError: a resumed run differs from what was recorded.
        KeyboardInterrupt: a signal came before training, or a second one while it ended.
    """
    if planned.group.rank:
        return _train(planned, Silent(), interruption)
    run = RunDirectory(planned.run)
    _admit(run, guard, resumes=planned.resumption is not None, prepares=planned.prepares)
    require_all(planned.checks, what=f"The preset `{planned.policy_preset}`")
    if planned.command:
        _become(planned.command, reporter)
    with Lease.take(run):
        # It may have been somebody's run between our look and our lease.
        require_admission(run, resumes=planned.resumption is not None, prepares=planned.prepares)
        record = TrainingRecord(policy_preset=planned.policy_preset, preset=planned.recorded)
        write_record(planned.output_dir, record)
        return _train(planned, reporter, interruption)


def admit(
    options: TrainOptions,
    *,
    environment: Mapping[str, str],
    guard: Callable[[Path], None] | None = None,
) -> None:
    """Refuse at once what need not be planned: a directory that is another's, or in use.

    Args:
        options: what was chosen.
        environment: environment variables.
        guard: see `train`.

    Raises:
        LeaseHeldError: see `train`; likewise `RefusedError`, `RunExistsError`, `RunNotFoundError`
            and `UnreadableRunError`.
        OptionError: an option or the preset says what cannot be.
    """
    if process_group(environment).rank:
        return
    resolved = resolve(options, environment)
    _admit(
        RunDirectory(resolved.run),
        guard,
        resumes=options.resume is not None,
        prepares=resolved.preset.prepare is not None,
    )


def _admit(
    run: RunDirectory, guard: Callable[[Path], None] | None, *, resumes: bool, prepares: bool
) -> None:
    """Refuse before anything is made; the lease's own refusal names its holder."""
    if lease_of(run).held:
        Lease.take(run).release()
    if guard is not None:
        guard(run.root)
    require_admission(run, resumes=resumes, prepares=prepares)


def _become(command: tuple[str, ...], reporter: Reporter) -> None:
    if os.environ.get(LAUNCHED_VARIABLE):
        raise LaunchError(
            f"The launcher started one process, in no group: {shlex.join(command)}",
            hint="Start it with torchrun --nproc-per-node, or on a machine with the devices",
        )
    reporter.say(f"Starting {shlex.join(command)}")
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, LAUNCHED_VARIABLE: "1"}
    os.execve(command[0], command, environment)  # noqa: S606 - it takes our place and our signals


def _train(planned: Plan, reporter: Reporter, interruption: Interruption) -> Outcome:
    fetches = planned.source is not None and planned.source.fetch
    with ExitStack() as stack:
        with reporter.phase("Load the libraries", total=1):
            # Takes seconds, so it happens when the terminal already shows what it waits for.
            import aegir_adapters.train.training  # noqa: F401, PLC0415
        stack.enter_context(nullcontext() if fetches else hub_offline())
        stack.enter_context(quiet_libraries())
        stack.enter_context(torch_threads(planned.preset.devices.threads))
        _say_where(planned, reporter)
        if planned.prepares:
            _prepare(planned, reporter)
        return reinforce(
            planned.preset,
            run=planned.run,
            layers=planned.layers or (),
            reporter=reporter,
            interruption=interruption,
            resumed=planned.resumption,
            allow_drift=planned.allow_drift,
            allow_download=fetches,
        )


def _say_where(planned: Plan, reporter: Reporter) -> None:
    resumed = planned.resumption
    if resumed is None:
        return
    for name, faults in resumed.skipped.items():
        reporter.say(f"Passing over {name}: {'; '.join(faults)}")
    if resumed.checkpoint is None:
        reporter.say("There is no whole checkpoint to go on from: starting at step 1")
    else:
        reporter.say(f"Going on from {resumed.checkpoint.name}")


def _prepare(planned: Plan, reporter: Reporter) -> None:
    preparation = planned.preset.prepare
    if preparation is None or planned.layers is None:
        return
    prepare = function_of(preparation.function)
    facts = prepare(
        planned.assets,
        layers=planned.layers,
        seed=planned.preset.seed,
        settings=preparation.settings,
        reporter=reporter,
    )
    planned.assets.mark_complete(facts)


def reinforce(
    preset: Preset,
    *,
    run: P5Cfg,
    layers: Sequence[int],
    reporter: Reporter,
    interruption: Interruption,
    resumed: Resumption | None = None,
    allow_drift: bool = False,
    allow_download: bool = False,
) -> Outcome:
    """Load policy, SAEs, prompts and reward from where a preset says they lie, and train.

    Args:
        preset: what is trained, and how.
        run: the run directory and its file names.
        layers: layers to hook.
        reporter: who is told.
        interruption: asks for an orderly end.
        resumed: where the run goes on; a new one if absent.
        allow_drift: go on although model, SAEs or layers are others than were recorded.
        allow_download: fetch the model from the hub.

    Raises:
        IdentityDriftError: a resumed run differs from what was recorded.
        SAEFormatError: an SAE cannot be read.
        KeyboardInterrupt: a second signal came while training ended.
    """
    from aegir_adapters.train.training import (  # noqa: PLC0415 - needs the extra
        RecordedTrainer,
        build_trainer,
        load_policy,
        load_saes,
    )

    trainer = build_trainer(
        preset,
        policy=load_policy(preset.policy, allow_download=allow_download),
        prompts=read_prompts(Path(str(preset.prompts.path)).expanduser()),
        reward=function_of(str(preset.reward.function)),
        output_dir=Path(run.output_dir),
    )
    saes = load_saes(str(preset.sae.path), layers)
    with reporter.phase("Train it by GRPO", total=preset.grpo.steps) as advance:
        recorded = RecordedTrainer(
            trainer,
            saes=saes,
            run=run,
            recording=preset.recording,
            allow_drift=allow_drift,
            is_asked=lambda: interruption.asked,
            on_step=lambda step, reward: advance(step, f"reward {reward:.2f}"),
        )
        with interruption.orderly():
            recorded.train(resumed.checkpoint if resumed else None)
    statistics = recorded.recording.statistics()
    return Outcome(
        status="stopped" if recorded.stopped else "finished",
        step=recorded.step,
        steps=preset.grpo.steps,
        reward=recorded.reward,
        records=statistics.records_written,
        dropped=statistics.records_dropped,
        output_dir=Path(run.output_dir),
    )
