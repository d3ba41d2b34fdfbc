"""The devices of this machine, and what is free on them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from aegir_adapters.train.checks import Check, missing, ok, unknown

if TYPE_CHECKING:
    from aegir_adapters.train.memory import MemoryEstimate
    from aegir_adapters.train.preset import Devices

__all__ = ["Machine", "check_devices", "check_memory", "gib", "this_machine"]

_MEMINFO = Path("/proc/meminfo")


class Machine(Struct, frozen=True, kw_only=True):
    """What there is to train on.

    Attributes:
        accelerators: name of each accelerator; `None` without torch to ask.
        free_bytes: free memory of each, where it can be told.
        host_free_bytes: memory of the host that is available.
    """

    accelerators: tuple[str, ...] | None
    free_bytes: tuple[int, ...] = ()
    host_free_bytes: int | None = None


def this_machine(*, alone: bool = True) -> Machine:
    """Ask torch and the kernel what there is; on CUDA this makes a context on each device.

    Args:
        alone: whether this process is the only one; with others beside it, that are taking memory
            already, what is free says nothing and is not asked for.
    """
    host = _available_bytes() if alone else None
    try:
        import torch  # noqa: PLC0415 - needs the extra
    except ImportError:
        return Machine(accelerators=None, host_free_bytes=host)
    if torch.cuda.is_available():
        places = range(torch.cuda.device_count())
        return Machine(
            accelerators=tuple(map(torch.cuda.get_device_name, places)),
            free_bytes=tuple(torch.cuda.mem_get_info(place)[0] for place in places if alone),
            host_free_bytes=host,
        )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if found else 0
    return Machine(accelerators=(str(found),) * count, host_free_bytes=host)


def check_devices(devices: Devices, machine: Machine) -> Check:
    """Tell whether there are as many devices as the preset asks for."""
    if devices.kind == "cpu":
        return ok("devices", f"{devices.count} x CPU of {os.cpu_count()} cores")
    if machine.accelerators is None:
        return unknown("devices", "torch is not installed")
    there = len(machine.accelerators)
    names = ", ".join(dict.fromkeys(machine.accelerators))
    if there < devices.count:
        found = f"{there} ({names})" if there else "no accelerator"
        return missing(
            "devices",
            f"{devices.count} wanted, found {found}",
            "Choose a smaller preset, such as tiny, or make more devices visible",
        )
    return ok("devices", f"{devices.count} of {there} ({names})")


def check_memory(devices: Devices, machine: Machine, estimate: MemoryEstimate | None) -> Check:
    """Tell whether the estimate fits into what is free on each device."""
    if estimate is None:
        return unknown("device memory", "nothing to estimate from until the model is there")
    wanted = f"{gib(estimate.total)} wanted on each device"
    free = _free_on_each(devices, machine)
    if free is None:
        return unknown("device memory", f"{wanted}, none to compare it with")
    if estimate.total > free:
        return missing(
            "device memory",
            f"{wanted}, {gib(free)} free",
            "Shard over more devices, or lower grpo.device_batch or completion_tokens in a preset"
            " of your own",
        )
    return ok("device memory", f"{wanted}, {gib(free)} free")


def gib(size: int) -> str:
    """Return a size for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.1f} MiB"


def _free_on_each(devices: Devices, machine: Machine) -> int | None:
    """Return what every one of so many devices has free, `None` where that cannot be told."""
    if devices.kind == "cpu":
        host = machine.host_free_bytes
        return None if host is None else host // devices.count
    freest = sorted(machine.free_bytes, reverse=True)[: devices.count]
    return min(freest, default=None)


def _available_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) << 10 if found else None
