"""Whether this process is one of several that train together, and how to start them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegir_adapters.train.preset import Devices

__all__ = ["LAUNCHED_VARIABLE", "ProcessGroup", "launch_command", "process_group"]

LAUNCHED_VARIABLE = "AEGIR_TRAIN_LAUNCHED"
"""Set for the launcher, so that processes which it does not put into a group launch no other."""

_SHARDING = {
    "none": (),
    # Of CPUs as well: `--cpu` would want MPI.
    "ddp": ("--multi_gpu",),
    "fsdp": (
        "--use_fsdp",
        "--fsdp_version",
        "2",
        "--fsdp_auto_wrap_policy",
        "TRANSFORMER_BASED_WRAP",
        "--fsdp_reshard_after_forward",
        "true",
        "--fsdp_state_dict_type",
        "SHARDED_STATE_DICT",
        "--fsdp_cpu_ram_efficient_loading",
        "true",
    ),
}


class ProcessGroup(Struct, frozen=True, kw_only=True):
    """The processes that train together.

    Attributes:
        rank: this one's number.
        size: how many there are.
        launched: whether a launcher started them.
    """

    rank: int = 0
    size: int = 1
    launched: bool = False


def process_group(environment: Mapping[str, str]) -> ProcessGroup:
    """Return the group that a launcher (torchrun, accelerate) put this process into."""
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not (rank.isdigit() and size.isdigit()):
        return ProcessGroup()
    return ProcessGroup(rank=int(rank), size=int(size), launched=True)


def launch_command(devices: Devices, arguments: Sequence[str]) -> list[str]:
    """Return the command that starts `aegir train` on each device.

    Args:
        devices: how many, and how the model is spread over them.
        arguments: what stands behind `aegir train`.
    """
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--num_processes", str(devices.count), "--num_machines", "1"),
        # A free one: the default is the same for every run on a host.
        *("--main_process_port", "0"),
        # The weights' dtype is the one that is computed in.
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *_SHARDING[devices.sharding],
        *("-m", "aegir_adapters.cli", "train", *arguments),
    ]
