from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from aegir_adapters.train import TrainOptions, plan
from aegir_adapters.train.display import plan_report, plan_table, verdict_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("preset", "verdict"), [("tiny", "ok"), ("27b-fsdp-l0-100", "missing")])
def test_people_and_programs_are_told_the_same(tmp_path: Path, preset: str, verdict: str) -> None:
    """Every setting with its origin and every check with its verdict stand in both."""
    options = TrainOptions(policy_preset=preset, output_dir=tmp_path / "run", steps=7)
    planned = plan(options, environment={})
    stream = io.StringIO()
    Console(file=stream, width=400).print(plan_table(planned))
    shown, report = stream.getvalue(), plan_report(planned)
    assert verdict_of(planned) == report["verdict"] == verdict
    for name, setting in report["settings"].items():
        row = next(line for line in shown.splitlines() if line.split()[:1] == [name])
        assert str(setting["value"]) in row
        assert row.rstrip().endswith(setting["origin"])
    for check in report["checks"]:
        assert check["detail"] in shown
        assert check["remedy"] in shown
    assert ", ".join(map(str, report["layers_hooked"])) in shown
    assert ("accelerate.commands.launch" in shown) == bool(report["command"])
