from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from aegir_adapters.train import load_preset
from aegir_adapters.train.process_group import ProcessGroup, launch_command, process_group

if TYPE_CHECKING:
    from pathlib import Path

SAY_PLACE = """
import os
names = ("RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_STATE_DICT_TYPE")
said = " ".join(os.environ.get(name, "-") for name in names)
os.write(1, f"{said}\\n".encode())
"""


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        ({}, ProcessGroup()),
        ({"RANK": "", "WORLD_SIZE": ""}, ProcessGroup()),
        ({"RANK": "1"}, ProcessGroup()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ProcessGroup(rank=1, size=2, launched=True)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ProcessGroup(rank=0, size=1, launched=True)),
    ],
)
def test_launchers_are_recognised(environment: dict[str, str], group: ProcessGroup) -> None:
    """A launcher tells each process its rank and how many there are."""
    assert process_group(environment) == group


def test_the_command_starts_a_process_on_each_device(tmp_path: Path) -> None:
    """The launcher takes the command as it is: two ranks, sharded by FSDP2."""
    devices = load_preset("9b-fsdp-l0-50").devices
    command = launch_command(devices, ["--steps", "3"])
    assert command[-5:] == ["-m", "aegir_adapters.cli", "train", "--steps", "3"]
    (tmp_path / "say_place.py").write_text(SAY_PLACE)
    done = subprocess.run(
        [*command[:-4], "say_place"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert command[0] == sys.executable
    assert sorted(done.stdout.splitlines()) == [
        "0 2 true 2 SHARDED_STATE_DICT",
        "1 2 true 2 SHARDED_STATE_DICT",
    ]
