"""All checks together, and the one message about those that fail."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from aegir_adapters.train.checks import Check, missing, ok, unknown
from aegir_adapters.train.functions import FunctionNameError, function_of
from aegir_adapters.train.machine import gib
from aegir_adapters.train.prompts import PromptFileError, read_prompts
from aegir_stream.errors import AegirError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegir_adapters.train.preset import Grpo, Preset

__all__ = [
    "RESERVED_ARGUMENTS",
    "UnmetRequirementsError",
    "check_batch",
    "check_disk",
    "check_function",
    "check_prompts",
    "check_reward",
    "check_trainer_arguments",
    "require_all",
]

RESERVED_ARGUMENTS = frozenset({"output_dir", "max_steps", "seed", "resume_from_checkpoint"})
"""Arguments of the trainer that the command line decides on."""


class UnmetRequirementsError(AegirError, RuntimeError):
    """Something that a training run needs is not there.

    Attributes:
        unmet: each of them.
    """

    def __init__(self, unmet: tuple[Check, ...], *, what: str) -> None:
        lines = [f"  {check.name}: {check.detail}. {check.remedy}" for check in unmet]
        super().__init__("\n".join([f"{what} cannot be trained here:", *lines]))
        self.unmet = unmet


def require_all(checks: Iterable[Check], *, what: str) -> None:
    """Return if nothing is missing.

    Raises:
        UnmetRequirementsError: something is; names all of it, and what to do about each.
    """
    unmet = tuple(check for check in checks if check.verdict == "missing")
    if unmet:
        raise UnmetRequirementsError(unmet, what=what)


def check_prompts(path: str | None, *, at_least: int) -> Check:
    """Tell whether there is a file of prompts, every line of it fine, and enough of them."""
    if path is None:
        return missing(
            "prompts",
            "no file is named",
            'Name one with --prompts: {"prompt": "..."} on each line',
        )
    try:
        count = len(read_prompts(Path(path).expanduser()))
    except PromptFileError as error:
        return missing("prompts", str(error), 'Each line is an object such as {"prompt": "..."}')
    if count < at_least:
        return missing(
            "prompts",
            f"{count} in {path}, a step takes {at_least}",
            "Add some, or lower grpo.device_batch in a preset of your own",
        )
    return ok("prompts", f"{count} in {path}")


def check_reward(name: str | None) -> Check:
    """Tell whether a reward is named, and can be imported."""
    if name is None:
        remedy = "Name one with --reward MODULE:FUNCTION, called as TRL calls reward functions"
        return missing("reward", "no function is named", remedy)
    return check_function("reward", name)


def check_function(kind: str, name: str) -> Check:
    """Tell whether a function that is named can be imported."""
    try:
        function_of(name)
    except FunctionNameError as error:
        remedy = f"{kind.capitalize()} has to be the MODULE:FUNCTION of what can be imported here"
        return missing(kind, str(error), remedy)
    return ok(kind, name)


def check_batch(preset: Preset) -> Check:
    """Tell whether completions fall into whole groups."""
    there, group = preset.completions_per_step, preset.grpo.completions_per_prompt
    if there % group:
        return missing(
            "batch",
            f"{there} completions a step are no multiple of {group} for each prompt",
            "Change grpo.device_batch, accumulation or completions_per_prompt",
        )
    return ok("batch", f"{there} completions a step, {group} for each of {there // group} prompts")


def check_trainer_arguments(grpo: Grpo) -> Check:
    """Tell whether TRL knows the further arguments that a preset has for it."""
    try:
        from trl.trainer.grpo_config import GRPOConfig  # noqa: PLC0415 - needs the extra
    except ImportError:
        return unknown("grpo.trainer", "trl is not installed")
    known = {field.name for field in fields(GRPOConfig) if field.init} - RESERVED_ARGUMENTS
    foreign = [name for name in grpo.trainer if name not in known]
    if foreign:
        return missing(
            "grpo.trainer",
            f"{', '.join(foreign)} cannot be set there",
            "Name arguments of trl.GRPOConfig that the preset has no key for",
        )
    return ok("grpo.trainer", ", ".join(grpo.trainer))


def check_disk(directory: Path, *, wanted: int) -> Check:
    """Tell whether the output directory can be written, and has room for the run."""
    there = _nearest_directory(directory)
    remedy = "Name another directory: --output-dir DIR or AEGIR_P5_OUTPUT_DIR=DIR"
    if there is None or not os.access(there, os.W_OK | os.X_OK):
        return missing("output directory", f"{directory} cannot be written", remedy)
    free = shutil.disk_usage(there).free
    if free < wanted:
        return missing(
            "output directory", f"{directory}: {gib(wanted)} wanted, {gib(free)} free", remedy
        )
    return ok("output directory", f"{directory}: at most {gib(wanted)}, {gib(free)} free")


def _nearest_directory(path: Path) -> Path | None:
    """Return the directory, or the one above it that is there; `None` if a file is in the way."""
    for candidate in (path.absolute(), *path.absolute().parents):
        if os.path.lexists(candidate):
            return candidate if candidate.is_dir() else None
    return None
