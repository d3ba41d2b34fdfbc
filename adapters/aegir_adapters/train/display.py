"""A plan for people and for programs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from aegir_adapters.train.machine import gib

if TYPE_CHECKING:
    from rich.console import RenderableType

    from aegir_adapters.train.checks import Check
    from aegir_adapters.train.plan import Plan

__all__ = ["plan_report", "plan_table", "verdict_of"]

_STYLES = {"ok": "green", "missing": "red", "refused": "red", "unknown": "yellow"}


def verdict_of(planned: Plan) -> str:
    """Return the verdict on the whole plan: the worst of its checks."""
    verdicts = {check.verdict for check in planned.checks}
    return next((word for word in ("refused", "missing") if word in verdicts), "ok")


def plan_report(planned: Plan) -> dict[str, Any]:
    """Return a plan as plain JSON values."""
    memory = planned.memory
    resumed = planned.resumption
    return {
        "verdict": verdict_of(planned),
        "policy_preset": planned.policy_preset,
        "output_dir": planned.run.output_dir,
        "settings": {
            setting.name: {"value": setting.value, "origin": setting.origin}
            for setting in planned.settings
        },
        "layers_hooked": planned.layers,
        "resume": None
        if resumed is None
        else {
            "checkpoint": str(resumed.checkpoint) if resumed.checkpoint else None,
            "step": resumed.step,
            "skipped": resumed.skipped,
        },
        "log_bytes_per_step": planned.log_bytes_per_step,
        "disk_bytes": planned.disk_bytes,
        "memory_bytes": None
        if memory is None
        else {
            **msgspec.structs.asdict(memory),
            "total": memory.total,
            "uncounted": memory.uncounted,
        },
        "checks": msgspec.to_builtins(planned.checks),
        "command": list(planned.command),
    }


def plan_table(planned: Plan) -> RenderableType:
    """Return a plan as tables."""
    parts: list[RenderableType] = [_settings(planned), _figures(planned), _checks(planned.checks)]
    if planned.command:
        parts.append(Text(f"Starts: {shlex.join(planned.command)}\n"))
    return Group(*parts)


def _settings(planned: Plan) -> Table:
    table = Table("setting", "value", "from", box=SIMPLE_HEAD, pad_edge=False)
    for setting in planned.settings:
        table.add_row(setting.name, Text(str(setting.value)), Text(setting.origin))
    return table


def _figures(planned: Plan) -> Table:
    table = Table("estimate", "", box=SIMPLE_HEAD, pad_edge=False)
    layers = planned.layers
    table.add_row("layers hooked", "unknown" if layers is None else ", ".join(map(str, layers)))
    table.add_row("log, a step", f"at most {gib(planned.log_bytes_per_step)}")
    table.add_row("disk, the run", f"at most {gib(planned.disk_bytes)}")
    if planned.memory is not None:
        for name, size in msgspec.structs.asdict(planned.memory).items():
            if size:
                table.add_row(f"memory, {name.replace('_', ' ')}", gib(size))
        uncounted = " and ".join(planned.memory.uncounted).replace("_", " ")
        without = f", without {uncounted}: the model is not there yet" if uncounted else ""
        table.add_row("memory, peak of a device", gib(planned.memory.total) + without)
    return table


def _checks(checks: tuple[Check, ...]) -> Table:
    table = Table("needed", "", "found", box=SIMPLE_HEAD, pad_edge=False)
    for check in checks:
        remedy = f"\n{check.remedy}" if check.remedy else ""
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(check.name, verdict, Text(check.detail + remedy))
    return table
