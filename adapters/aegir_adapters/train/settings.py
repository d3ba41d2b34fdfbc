"""Which value holds: the command line's, the run's record, the preset's, or a default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aegir_adapters.train.options import DEFAULT_PRESET
from aegir_adapters.train.preset import Preset
from aegir_adapters.train.preset_files import decode_preset, load_preset
from aegir_adapters.train.record import read_record, record_path
from aegir_stream.config import OUTPUT_DIR_VARIABLE, P5Cfg
from aegir_stream.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aegir_adapters.train.options import TrainOptions

__all__ = ["Resolved", "Setting", "resolve"]

_FLAGS = {
    "steps": "grpo.steps",
    "seed": "seed",
    "sae_num_layers": "sae.hooked",
    "sae_live_spill_every_n_steps": "recording.spill_every_n_steps",
    "model": "policy.model",
    "sae": "sae.path",
    "prompts": "prompts.path",
    "reward": "reward.function",
}
"""Key of a preset that each option goes before."""

_PREPARED = ("model", "sae", "prompts")
"""Options that name what a preparation would make."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A value, and where it came from.

    Attributes:
        name: key of the preset, or name of the option.
        value: plain JSON value.
        origin: an option, a variable, a preset, the run's record, or `default`.
    """

    name: str
    value: Any
    origin: str


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What holds.

    Attributes:
        policy_preset: name or path of the preset.
        preset: the preset, with what the options changed.
        run: the run directory and its file names.
        settings: every value, and where it came from.
    """

    policy_preset: str
    preset: Preset
    run: P5Cfg
    settings: tuple[Setting, ...]


def resolve(options: TrainOptions, environment: Mapping[str, str]) -> Resolved:
    """Return what holds.

    A resumed run goes by its own record; what is named again goes before that.

    Raises:
        OptionError: there is no such preset, or an option contradicts it.
        UnreadableRunError: the record of the run to resume is damaged.
    """
    cfg, cfg_origin = _output_dir(options, environment)
    name, base, origin, name_origin = _base(options, Path(cfg.output_dir))
    _refuse_contradictions(options, name, base)
    tables = msgspec.to_builtins(base)
    changed = _change(tables, options)
    preset = decode_preset(tables, source="the command line")
    spill = preset.recording.spill_every_n_steps
    settings = [
        Setting(name="output_dir", value=cfg.output_dir, origin=cfg_origin),
        Setting(name="policy_preset", value=name, origin=name_origin),
        *(
            Setting(name=key, value=value, origin=changed.get(key, origin))
            for key, value in _leaves(tables)
            if key != "summary"
        ),
    ]
    return Resolved(
        policy_preset=name,
        preset=preset,
        run=msgspec.structs.replace(cfg, sae_live_spill_every_n_steps=spill),
        settings=tuple(settings),
    )


def _output_dir(options: TrainOptions, environment: Mapping[str, str]) -> tuple[P5Cfg, str]:
    if options.output_dir is not None:
        return P5Cfg(output_dir=str(options.output_dir)), "--output-dir"
    cfg = P5Cfg().overridden_by(environment)
    return cfg, OUTPUT_DIR_VARIABLE if environment.get(OUTPUT_DIR_VARIABLE) else "default"


def _base(options: TrainOptions, output_dir: Path) -> tuple[str, Preset, str, str]:
    """Return name and content of the preset, where its values come from, and where its name."""
    if options.policy_preset is not None:
        name = options.policy_preset
        return name, load_preset(name), f"preset {name}", "--policy-preset"
    record = read_record(output_dir) if options.resume is not None else None
    if record is not None:
        place = str(record_path(output_dir))
        return record.policy_preset, record.preset, place, place
    return DEFAULT_PRESET, load_preset(DEFAULT_PRESET), f"preset {DEFAULT_PRESET}", "default"


def _refuse_contradictions(options: TrainOptions, name: str, base: Preset) -> None:
    named = [f"--{option}" for option in _PREPARED if getattr(options, option) is not None]
    if base.prepare is not None and named:
        raise OptionError(
            f"The preset `{name}` makes its own model, SAEs and prompts, got {', '.join(named)}",
            hint="Choose another preset, or write one without a [prepare] table",
        )
    devices = base.devices
    if (devices.count > 1) == (devices.sharding == "none"):
        raise OptionError(
            f"The preset `{name}` asks for {devices.count} devices with sharding"
            f" `{devices.sharding}`",
            hint="Several devices take `ddp` or `fsdp`, one takes `none`",
        )
    if devices.sharding == "fsdp" and devices.kind == "cpu":
        raise OptionError(
            f"The preset `{name}` shards over CPUs", hint="Only accelerators take `fsdp`"
        )
    if base.prepare is not None and base.devices.count > 1:
        raise OptionError(
            f"The preset `{name}` makes its own model, got {base.devices.count} devices",
            hint="A preparation runs in one process: set devices.count to 1",
        )
    if base.prepare is not None and base.policy.layers is None:
        raise OptionError(
            f"The preset `{name}` makes its own model and does not say how many layers it has",
            hint="Add `layers` to its [policy] table",
        )


def _change(tables: dict[str, Any], options: TrainOptions) -> dict[str, str]:
    """Write what options say into the tables; return the option by the key that it changed."""
    changed = {}
    for option, key in _FLAGS.items():
        value = getattr(options, option)
        if value is None:
            continue
        table, _, name = key.rpartition(".")
        (tables[table] if table else tables)[name] = value
        changed[key] = f"--{option.replace('_', '-')}"
    return changed


def _leaves(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value not in (None, {}):
            yield f"{prefix}{key}", value
