from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from adapters.train.small import PREPARED, SAVED, save_all, write_preset
from aegir_adapters.cli import app
from aegir_stream import codec
from aegir_stream.errors import RefusedError
from aegir_stream.events import Close, Open
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[2]
AEGIR = [sys.executable, "-m", "aegir_adapters.cli"]

REWARDS = """
import os
from adapters.trainer import tiny

GATE = os.environ.get("GATE")
calls = 0

def graded(completion_ids, **_):
    global calls
    calls += 1
    print(f"reward {calls}", flush=True)
    if GATE and calls == 3:
        open(GATE).close()
    return [tiny.judge(ids) for ids in completion_ids]
"""
"""A reward that says when it is called, and waits in the third step if there is a gate."""


def environment(**variables: str) -> dict[str, str]:
    """Return an environment without variables of ours but these."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIR_", "ALLOW_"))}
    path = os.pathsep.join(filter(None, (str(TESTS), plain.get("PYTHONPATH"))))
    return {**plain, "PYTHONPATH": path, **variables}


def aegir(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `aegir train` to its end."""
    return subprocess.run(
        [*AEGIR, "train", *map(str, arguments)],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=150,
        env=environment(**variables),
    )


@contextmanager
def started(*arguments: str | Path, cwd: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start `aegir train`; whatever happens, it does not outlive the block."""
    with subprocess.Popen(
        [*AEGIR, "train", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Read what a process prints until a line comes; fail if it ends before that."""
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.rstrip("\n") == line:
            return
    assert process.stderr is not None
    pytest.fail(f"It ended without `{line}`: {process.stderr.read()}")


def control_lines(run: RunDirectory) -> list[Any]:
    """Return all control lines of the SAE records, oldest first."""
    paths = [file.path for file in run.history()] + [run.live("sae_features")]
    lines = (line for path in paths for line in path.read_bytes().splitlines())
    return [codec.decode_control(line) for line in lines if codec.is_control(line)]


InProcess = Callable[..., Result]


@pytest.fixture
def in_process(here: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Run `aegir train` in this process, which has the libraries loaded."""

    def run(*arguments: str, **variables: str) -> Result:
        monkeypatch.chdir(here)
        for name in ("AEGIR_P5_OUTPUT_DIR", "AEGIR_WORKTREE_ROLE", "ALLOW_SECONDARY"):
            monkeypatch.delenv(name, raising=False)
        done = CliRunner().invoke(app, ["train", *arguments], env=variables)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working directory with a module of rewards."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def test_a_preset_that_makes_its_model_trains_stops_and_goes_on(here: Path) -> None:
    """SIGTERM leaves a log that ends `stopped`; `--resume` alone goes on without a second warm-up.

    No step is counted twice, and the log says what the second attempt continues.
    """
    preset = write_preset(here, PREPARED, steps=400, reward="rewards:graded")
    with started("--policy-preset", preset, cwd=here, AEGIR_P5_OUTPUT_DIR="run") as process:
        wait_for(process, "reward 3")
        process.terminate()
        output, errors = process.communicate(timeout=100)
    run = RunDirectory.at(here / "run")
    assert process.returncode == 128 + 15, errors
    assert "Go on with: aegir train --resume --output-dir run" in output
    closing = control_lines(run)[-1]
    assert isinstance(closing, Close)
    assert closing.status == "stopped"
    last = run.checkpoints()[-1].step

    done = aegir("--resume", "--output-dir", "run", "--steps", str(last + 2), cwd=here)
    assert done.returncode == 0, done.stderr
    assert f"Going on from checkpoint-{last}" in done.stdout
    assert "Fine-tune" not in done.stdout
    assert "missing keys" not in done.stderr
    openings = [line for line in control_lines(run) if isinstance(line, Open)]
    assert (openings[-1].attempt, openings[-1].continues) == (2, f"checkpoint-{last}")
    steps = [metrics.step for metrics in read_events(run, "grpo_metrics")]
    assert steps == list(range(1, last + 3))
    assert {record.layer_index for record in read_events(run, "sae_features")} == {0, 2}


def test_one_directory_takes_one_trainer(here: Path, in_process: InProcess) -> None:
    """The second is refused and told who the first is; when that was killed, it may go on."""
    save_all(here)
    preset = write_preset(here, SAVED, steps=4, reward="rewards:graded")
    gate = here / "gate"
    os.mkfifo(gate)
    begin = ("--policy-preset", preset, "--output-dir", "run")
    with started(*begin, cwd=here, GATE=str(gate)) as first:
        wait_for(first, "reward 3")
        second = aegir("--resume", "--output-dir", "run", cwd=here)
        looked = in_process("--resume", "--output-dir", "run", "--dry-run")
        first.kill()
    assert second.returncode == 2
    for word in (str(first.pid), os.uname().nodename, "started", str(here), "AEGIR_P5_OUTPUT_DIR"):
        assert word in second.stderr
    assert looked.exit_code == 2
    assert str(first.pid) in json.loads(looked.stdout)["checks"][0]["detail"]

    third = aegir("--resume", "--output-dir", "run", cwd=here)
    assert third.returncode == 0, third.stderr
    assert "Going on from checkpoint-2" in third.stdout
    steps = [m.step for m in read_events(RunDirectory.at(here / "run"), "grpo_metrics")]
    assert steps == [1, 2, 3, 4]


def test_several_processes_are_launched_and_train_together(here: Path) -> None:
    """A preset for two devices says and runs its launcher; both ranks write the one run."""
    save_all(here)
    preset = write_preset(here, SAVED, devices=2, sharding="ddp", reward="rewards:graded")
    done = aegir("--policy-preset", preset, "--output-dir", "run", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "accelerate.commands.launch --num_processes 2" in done.stdout
    run = RunDirectory.at(here / "run")
    completions = list(read_events(run, "completions"))
    assert len(completions) == 2 * 2 * 8
    assert {completion.rank for completion in completions} == {0, 1}
    assert done.stdout.count("Step 2 of 2") == 1


def test_a_large_preset_says_all_that_is_missing_at_once(here: Path) -> None:
    """One message, exit code 1, and nothing is written."""
    done = aegir("--policy-preset", "27b-fsdp-l0-100", "--output-dir", "run", cwd=here)
    assert done.returncode == 1
    assert done.stdout == ""
    for word in ("6 wanted", "Qwen/Qwen3.5-27B", "layer-0, layer-32", "--prompts", "--reward"):
        assert word in done.stderr
    assert not (here / "run").exists()


def test_a_plan_says_where_every_value_comes_from(here: Path, in_process: InProcess) -> None:
    """Layers, bytes of memory and log, the launcher, the checks; exit code 1 where it cannot be."""
    looked = in_process(
        "--policy-preset", "27b-fsdp-l0-100", "--sae-num-layers", "4", "--dry-run",
        AEGIR_P5_OUTPUT_DIR="run",
    )  # fmt: skip
    report = json.loads(looked.stdout)
    assert looked.exit_code == 1
    assert report["verdict"] == "missing"
    assert report["layers_hooked"] == [0, 16, 32, 48]
    assert report["settings"]["sae.hooked"] == {"value": 4, "origin": "--sae-num-layers"}
    assert report["settings"]["output_dir"] == {"value": "run", "origin": "AEGIR_P5_OUTPUT_DIR"}
    assert report["memory_bytes"]["weights"] == 27_000_000_000 * 2 // 6
    assert report["memory_bytes"]["uncounted"] == ["logits", "generation_cache"]
    assert "--use_fsdp" in report["command"]
    assert not (here / "run").exists()


def test_wrong_command_lines_are_told_from_failures(here: Path, in_process: InProcess) -> None:
    """An unknown preset, a used directory without `--resume`, nothing to resume: exit code 2."""
    (here / "used").mkdir()
    (here / "used" / "aegir_train.json").touch()
    tiny = ("--policy-preset", "tiny")
    unknown = in_process("--policy-preset", "huge")
    used = in_process(*tiny, "--output-dir", "used")
    nothing = in_process("--resume", *tiny, "--output-dir", "new")
    assert [done.exit_code for done in (unknown, used, nothing)] == [2, 2, 2]
    assert "9b-local-l0-50" in unknown.stderr
    assert "--resume" in used.stderr
    assert "without --resume" in nothing.stderr
    assert not (here / "new").exists()


def test_presets_are_listed(in_process: InProcess) -> None:
    """One JSON object a line in a pipe, all of the preset in it."""
    done = in_process("--list-presets")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[0]["name"] == "tiny"
    assert {row["name"]: row["devices"]["count"] for row in rows}["27b-fsdp-l0-100"] == 6


def test_a_guarded_run_is_refused_in_a_secondary_checkout(
    here: Path, in_process: InProcess
) -> None:
    """`--guarded` names the resource and both variables; the plan shows it without writing."""
    subprocess.run(["git", "init", "--quiet"], cwd=here, check=True)
    guarded = ("--policy-preset", "tiny", "--guarded")
    looked = in_process(*guarded, "--dry-run", AEGIR_WORKTREE_ROLE="secondary")
    assert looked.exit_code == 2
    check = json.loads(looked.stdout)["checks"][0]
    assert check["verdict"] == "refused"
    assert "AEGIR_P5_OUTPUT_DIR" in check["detail"] + check["remedy"]
    assert "ALLOW_SECONDARY" in check["detail"] + check["remedy"]
    with pytest.raises(RefusedError, match="ALLOW_SECONDARY"):
        in_process(*guarded, AEGIR_WORKTREE_ROLE="secondary")
