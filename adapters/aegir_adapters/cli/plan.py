"""`aegir plan`: what a recording will cost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegir_adapters.cli.extras import require
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.cost import CaptureLoad, TimeCost, disk_cost, memory_cost, time_cost
from aegir_adapters.train import load_preset, preset_names
from aegir_stream.errors import OptionError
from aegir_stream.sampling import SamplingRule

if TYPE_CHECKING:
    from aegir_adapters.train import Preset

__all__ = ["plan"]

_MEASURED = (
    "Milliseconds are extrapolated from timings of smaller TopK SAEs on this machine's CPU, made"
    " just now; memory and bytes are formulas."
)
_UNMEASURED = "Milliseconds were not measured (--no-timing); memory and bytes are formulas."


def plan(
    *,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.toml", help="Take model, SAEs, batch and steps from it."),
    ] = None,
    d_model: Annotated[
        int | None, typer.Option(min=1, help="Width of the residual stream.")
    ] = None,
    n_latents: Annotated[int | None, typer.Option(min=1, help="Latents of each SAE.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers that are hooked.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Completion tokens of a step on one process.")
    ] = None,
    completions: Annotated[
        int | None, typer.Option(min=1, help="Among how many completions.")
    ] = None,
    forwards: Annotated[
        int | None, typer.Option(min=1, help="In how many forwards (micro-batches).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of the run.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Latents recorded per token.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="How many passes are recorded.")] = 1,
    record_every_n_tokens: Annotated[
        int, typer.Option(min=1, help="Record one of every n positions.")
    ] = 1,
    token_share: Annotated[float, typer.Option(help="Record this share of the tokens.")] = 1.0,
    max_tokens_per_completion: Annotated[
        int | None, typer.Option(min=1, help="Record at most so many of a completion.")
    ] = None,
    max_tokens_per_step: Annotated[
        int | None, typer.Option(min=1, help="Record at most so many of a step.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the SAEs run, for the memory: cpu or cuda.")
    ] = "cpu",
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time a small SAE here, for a second.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON, as in a pipe; else a table.")
    ] = False,
) -> None:
    """Estimate what recording a step and a run costs: bytes, milliseconds, memory.

    Example: aegir plan --d-model 4096 --n-latents 65536 --layers 2 --tokens 8192 --steps 1000
    """
    given = {
        "d_model": d_model,
        "n_latents": n_latents,
        "layers": layers,
        "tokens": tokens,
        "completions": completions,
        "forwards": forwards,
        "steps": steps,
        "top_k": top_k,
    }
    load = _load(
        _known(preset) | {name: value for name, value in given.items() if value is not None},
        passes=passes,
        budget={
            "record_every_n_tokens": record_every_n_tokens,
            "token_share": token_share,
            "max_tokens_per_completion": max_tokens_per_completion,
            "max_tokens_per_step": max_tokens_per_step,
        },
    )
    report = _report(load, device=_device(device), times=_times(load) if timing else None)
    if as_json or not sys.stdout.isatty():
        with quiet_pipe():
            told = msgspec.json.format(msgspec.json.encode(report), indent=2)
            sys.stdout.write(told.decode() + "\n")
        return
    Console().print(_table(load, report))


def _known(name: str | None) -> dict[str, int]:
    """Return what a preset says of one process."""
    if name is None:
        return {}
    preset: Preset = load_preset(name)
    grpo = preset.grpo
    known = {
        "d_model": preset.policy.width,
        "n_latents": preset.sae.latents,
        "layers": preset.sae.hooked,
        "tokens": grpo.device_batch * grpo.accumulation * grpo.completion_tokens,
        "completions": grpo.device_batch * grpo.accumulation,
        "forwards": grpo.accumulation,
        "steps": grpo.steps,
        "top_k": preset.recording.top_k,
    }
    return {name: value for name, value in known.items() if value is not None}


def _load(known: dict[str, int], *, passes: int, budget: dict[str, Any]) -> CaptureLoad:
    """Return the load, if enough is known.

    Raises:
        OptionError: something is missing or out of range.
    """
    missing = [
        option for option in ("d_model", "n_latents", "layers", "tokens") if option not in known
    ]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise OptionError(
            f"Expected {options} beside what was given",
            hint=f"Give them, or --preset with one of {', '.join(preset_names())}",
        )
    rule = SamplingRule(completions_per_step=known.get("completions", 1), **budget)
    return CaptureLoad(**known, passes=passes, sampling=rule)


def _device(name: str) -> Literal["cpu", "cuda"]:
    if name == "cpu":
        return "cpu"
    if name == "cuda":
        return "cuda"
    raise OptionError(f"Expected `--device` cpu or cuda, got {name!r}", hint="Write --device cuda")


def _times(load: CaptureLoad) -> TimeCost:
    require("torch", "transformers", extra="trainer")
    from aegir_adapters.cli.calibration import calibrate  # noqa: PLC0415 - torch takes seconds

    return time_cost(load, calibrate(top_k=load.top_k))


def _report(load: CaptureLoad, *, device: str, times: TimeCost | None) -> dict[str, Any]:
    memory = memory_cost(load, device=device)
    return {
        "load": {
            **{name: getattr(load, name) for name in load.__struct_fields__ if name != "sampling"},
            "recorded_tokens": round(load.recorded_tokens, 1),
            "records": round(load.records, 1),
            "sampling": load.sampling.describe() if load.sampling.thins else None,
        },
        "disk_bytes": msgspec.to_builtins(disk_cost(load)),
        "memory_bytes": {**msgspec.to_builtins(memory), "total": memory.total, "device": device},
        "milliseconds": None if times is None else msgspec.to_builtins(times),
        "origin": _UNMEASURED if times is None else _MEASURED,
    }


def _table(load: CaptureLoad, report: dict[str, Any]) -> Table:
    title = (
        f"{load.recorded_tokens:,.0f} of {load.tokens:,} tokens a step, {load.layers} layers of"
        f" {load.n_latents:,} latents, K = {load.top_k}"
    )
    table = Table(
        "",
        "a step",
        "the run",
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=title,
        caption=report["origin"],
    )
    disk, memory, times = report["disk_bytes"], report["memory_bytes"], report["milliseconds"]
    table.add_row("records", f"{load.records:,.0f}", f"{load.records * load.steps:,.0f}")
    table.add_row("log", _size(disk["step"]), _size(disk["run"]))
    if times is not None:
        for name, key in (("training thread", "training_ms"), ("recorder's thread", "recorder_ms")):
            seconds = times[key] * load.steps / 1e3
            table.add_row(name, f"{times[key]:,.1f} ms", f"{seconds:,.0f} s")
    for name, key in (
        ("SAE weights", "saes"),
        ("while a layer is read", "transient"),
        ("records held", "held"),
        ("lines written", "written"),
    ):
        table.add_row(name, _size(memory[key]), "")
    return table


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:  # noqa: PLR2004 - of the unit before
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"
