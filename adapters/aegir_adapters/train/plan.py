"""A training run before it begins: every value and where it came from, estimates, checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from aegir_adapters.train.admission import check_admission
from aegir_adapters.train.checkpoints import Resumption, resumption
from aegir_adapters.train.checks import Check, unknown
from aegir_adapters.train.estimates import disk_bytes, log_bytes_per_step, memory_of
from aegir_adapters.train.libraries import check_libraries
from aegir_adapters.train.machine import check_devices, check_memory, this_machine
from aegir_adapters.train.memory import MemoryEstimate
from aegir_adapters.train.prepared import AssetPaths
from aegir_adapters.train.preset import Preset
from aegir_adapters.train.process_group import ProcessGroup, launch_command, process_group
from aegir_adapters.train.requirements import (
    check_batch,
    check_disk,
    check_function,
    check_prompts,
    check_reward,
    check_trainer_arguments,
)
from aegir_adapters.train.settings import Setting, resolve
from aegir_adapters.train.sources import ModelSource, check_model, check_saes, model_source
from aegir_stream.config import P5Cfg
from aegir_stream.errors import OptionError
from aegir_stream.layout import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aegir_adapters.train.options import TrainOptions

__all__ = ["Plan", "Setting", "plan"]


class Plan(Struct, frozen=True, kw_only=True):
    """What will happen.

    Attributes:
        policy_preset: name of the preset, or its path.
        recorded: the preset with what the options changed, as it is written into the run directory.
        preset: the same, with the places of what a preparation makes.
        run: the run directory and its file names.
        settings: every value, and where it came from.
        group: the processes that train together.
        layers: the layers that are hooked; `None` while the model's layers cannot be counted.
        source: where the policy is loaded from.
        resumption: where a run goes on; `None` for a new one.
        prepares: whether policy, SAEs and prompts are made first.
        memory: what each device holds.
        log_bytes_per_step: what a step writes at most.
        disk_bytes: what the run takes at most.
        checks: what is needed, and how it stands.
        command: what starts a process on each device; empty where this process is enough.
        allow_drift: see `TrainOptions`.
    """

    policy_preset: str
    recorded: Preset
    preset: Preset
    run: P5Cfg
    settings: tuple[Setting, ...]
    group: ProcessGroup
    layers: tuple[int, ...] | None
    source: ModelSource | None
    resumption: Resumption | None
    prepares: bool
    memory: MemoryEstimate | None
    log_bytes_per_step: int
    disk_bytes: int
    checks: tuple[Check, ...]
    command: tuple[str, ...]
    allow_drift: bool

    @property
    def output_dir(self) -> Path:
        """The run directory."""
        return Path(self.run.output_dir)

    @property
    def assets(self) -> AssetPaths:
        """What a preparation makes in it."""
        return AssetPaths(root=self.output_dir)


def plan(
    options: TrainOptions,
    *,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
    guard: Callable[[Path], None] | None = None,
) -> Plan:
    """Resolve options into all that will happen. Reads only.

    Args:
        options: what was chosen.
        environment: environment variables.
        arguments: the command line behind `aegir train`, for processes to be launched.
        guard: raises `RefusedError` where the directory is not this checkout's to write.

    Raises:
        OptionError: an option or the preset says what cannot be.
        UnreadableRunError: the record of the run to resume is damaged.
    """
    resolved = resolve(options, environment)
    preset = resolved.preset
    run = RunDirectory(resolved.run)
    assets = AssetPaths(root=run.root)
    prepares = preset.prepare is not None and (options.resume is None or assets.facts() is None)
    placed = assets.placed(preset) if preset.prepare else preset
    source = (
        None if prepares else model_source(placed.policy, allow_download=options.allow_download)
    )
    layers = _hooked_layers(placed, source)
    resumed = _resumption(run, options, steps=preset.grpo.steps)
    files = source.files if source else None
    hooked = preset.sae.hooked if layers is None else len(layers)
    disk = disk_bytes(preset, files, hooked=hooked, steps_done=resumed.step if resumed else 0)
    memory = memory_of(preset, files, hooked=hooked)
    group = process_group(environment)
    needs_launch = preset.devices.count > 1 and not group.launched
    unchecked = Plan(
        policy_preset=resolved.policy_preset,
        recorded=preset,
        preset=placed,
        run=resolved.run,
        settings=resolved.settings,
        group=group,
        layers=layers,
        source=source,
        resumption=resumed,
        prepares=prepares,
        memory=memory,
        log_bytes_per_step=log_bytes_per_step(preset, hooked=hooked),
        disk_bytes=disk,
        checks=(),
        command=tuple(launch_command(preset.devices, arguments)) if needs_launch else (),
        allow_drift=options.allow_drift,
    )
    # Ranks that a launcher started were checked, all at once, by the process that launched them.
    return unchecked if group.rank else replace(unchecked, checks=_checks(unchecked, guard))


def _hooked_layers(preset: Preset, source: ModelSource | None) -> tuple[int, ...] | None:
    counted = source.files.layers if source and source.files else None
    layers = counted or preset.policy.layers
    if layers is None:
        return None
    try:
        from aegir_adapters.trainer import default_layers_to_hook  # noqa: PLC0415 - needs the extra
    except ImportError:
        return None
    return tuple(default_layers_to_hook(layers, preset.sae.hooked))


def _resumption(run: RunDirectory, options: TrainOptions, *, steps: int) -> Resumption | None:
    if options.resume is None:
        return None
    found = resumption(run, options.resume)
    if found.step >= steps:
        raise OptionError(
            f"The run in `{run.root}` has done {found.step} of its {steps} steps",
            hint=f"Ask for more than {found.step} with --steps to go on",
        )
    return found


def _checks(planned: Plan, guard: Callable[[Path], None] | None) -> tuple[Check, ...]:
    preset = planned.preset
    machine = this_machine(alone=not planned.group.launched)
    checks: list[Check] = [
        check_admission(planned.run, planned.resumption, prepares=planned.prepares, guard=guard),
        check_libraries(preset),
        check_devices(preset.devices, machine),
        check_memory(preset.devices, machine, planned.memory),
        check_batch(preset),
        *_checks_of_inputs(planned),
        check_reward(preset.reward.function),
        check_disk(planned.output_dir, wanted=planned.disk_bytes),
    ]
    if preset.grpo.trainer:
        checks.append(check_trainer_arguments(preset.grpo))
    return tuple(checks)


def _checks_of_inputs(planned: Plan) -> list[Check]:
    """Judge policy, SAEs and prompts, or the function that makes them."""
    preset = planned.preset
    if planned.prepares and preset.prepare:
        return [check_function("prepare", preset.prepare.function)]
    files = planned.source.files if planned.source else None
    saes = (
        unknown("SAEs", "the model's layers are not counted yet")
        if planned.layers is None
        else check_saes(
            preset.sae, planned.layers, width=(files and files.width) or preset.policy.width
        )
    )
    per_step = -(-preset.completions_per_step // preset.grpo.completions_per_prompt)
    return [
        check_model(planned.source, preset.policy),
        saes,
        check_prompts(preset.prompts.path, at_least=per_step),
    ]
