from __future__ import annotations

import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapters.trainer import tiny
from aegir_adapters.sae import save_sae
from aegir_adapters.train import (
    Interruption,
    Outcome,
    Plan,
    Silent,
    TrainOptions,
    UnmetRequirementsError,
    plan,
    train,
)
from aegir_adapters.train.prompts import read_prompts
from aegir_stream import codec
from aegir_stream.errors import IdentityDriftError, RunExistsError, RunNotFoundError
from aegir_stream.events import Close, Open
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events

from .small import SAVED, top_k_sae, write_preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aegir_adapters.train import Advance

seen: list[dict[str, Any]] = []
interrupting: list[Callable[[], None]] = []


def watched(
    prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **columns: Any
) -> list[float]:
    """Reward as `tiny.graded`; keep what else came, and do what a test wants done meanwhile."""
    seen.append({"prompts": list(prompts), **columns})
    for act in interrupting:
        act()
    return [tiny.judge(ids) for ids in completion_ids]


class Told(Silent):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reached: dict[str, int] = {}

    @contextmanager
    def phase(self, title: str, *, total: int) -> Iterator[Advance]:
        """Keep how far a phase came."""

        def advance(done: int, note: str = "") -> None:
            self.reached[title] = done

        advance(total)
        yield advance

    def say(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(line)


@pytest.fixture
def preset(saved: Path, tmp_path: Path) -> Path:
    """A user's own preset beside his model, SAEs and prompts."""
    shutil.copytree(saved, tmp_path / "mine")
    seen.clear()
    interrupting.clear()
    return write_preset(tmp_path / "mine", SAVED, steps=4, reward=f"{__name__}:watched")


def planned(preset: Path, **options: Any) -> Plan:
    """Return the plan of the preset in the run directory beside it."""
    output_dir = preset.parents[1] / "run"
    chosen = TrainOptions(policy_preset=str(preset), output_dir=output_dir, **options)
    return plan(chosen, environment={})


def trained(preset: Path, reporter: Told | None = None, **options: Any) -> Outcome:
    """Train by the preset."""
    interruption = Interruption()
    with interruption.heard():
        return train(
            planned(preset, **options), reporter=reporter or Told(), interruption=interruption
        )


def control_lines(run: RunDirectory) -> list[Any]:
    """Return all control lines of the SAE records, oldest first."""
    paths = [file.path for file in run.history()] + [run.live("sae_features")]
    lines = (line for path in paths for line in path.read_bytes().splitlines())
    return [codec.decode_control(line) for line in lines if codec.is_control(line)]


def test_a_preset_of_ones_own_really_trains(preset: Path) -> None:
    """A saved model, SAEs, prompts and a reward: every token is recorded at the hooked layers.

    The reward is told every column of the prompts; weights have moved; checkpoints are kept.
    """
    outcome = trained(preset, sae_live_spill_every_n_steps=2)
    run = RunDirectory.at(outcome.output_dir)
    completions = list(read_events(run, "completions"))
    records = list(read_events(run, "sae_features"))
    assert (outcome.status, outcome.step, outcome.steps, outcome.dropped) == ("finished", 4, 4, 0)
    assert len(completions) == 4 * 8
    assert len(records) == 2 * sum(completion.length for completion in completions)
    assert {record.layer_index for record in records} == {0, 1}
    rows = read_prompts(preset.parent / "prompts.jsonl")
    told = list(zip(seen[0]["prompts"], seen[0]["number"], strict=True))
    assert all({"prompt": prompt, "number": number} in rows for prompt, number in told)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 4]
    trained_weights = run.root / "checkpoint-4" / "model.safetensors"
    first_weights = preset.parent / "model" / "model.safetensors"
    assert trained_weights.read_bytes() != first_weights.read_bytes()
    closing = control_lines(run)[-1]
    assert isinstance(closing, Close)
    assert closing.status == "finished"


def test_a_finished_run_can_go_on(preset: Path) -> None:
    """More steps continue the newest checkpoint, as a second attempt of the same log."""
    trained(preset)
    told = Told()
    outcome = trained(preset, told, resume="latest", steps=6)
    run = RunDirectory.at(outcome.output_dir)
    openings = [line for line in control_lines(run) if isinstance(line, Open)]
    assert outcome.step == 6
    assert told.lines == ["Going on from checkpoint-4"]
    assert (openings[-1].attempt, openings[-1].continues) == (2, "checkpoint-4")
    assert [m.step for m in read_events(run, "grpo_metrics")] == [1, 2, 3, 4, 5, 6]


def test_an_interrupted_run_stops_in_order(preset: Path) -> None:
    """The step ends, a checkpoint is saved off schedule, the log says `stopped`; it can go on."""
    interrupting.append(lambda: signal.raise_signal(signal.SIGTERM) if len(seen) == 3 else None)
    told = Told()
    stopped = trained(preset, told)
    run = RunDirectory.at(stopped.output_dir)
    assert (stopped.status, stopped.step) == ("stopped", 3)
    assert told.reached["Train it by GRPO"] == 3
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 3]
    closing = control_lines(run)[-1]
    assert isinstance(closing, Close)
    assert closing.status == "stopped"

    assert trained(preset, resume="latest").step == 4
    assert [m.step for m in read_events(run, "grpo_metrics")] == [1, 2, 3, 4]


def test_a_run_that_is_interrupted_twice_still_closes_its_log(preset: Path) -> None:
    """It stops in the middle of a step, and goes on from the checkpoint before."""

    def insist() -> None:
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    interrupting.append(insist)
    with pytest.raises(KeyboardInterrupt):
        trained(preset)
    run = RunDirectory.at(preset.parents[1] / "run")
    closing = control_lines(run)[-1]
    assert isinstance(closing, Close)
    assert closing.status == "stopped"
    assert trained(preset, resume="latest").step == 4
    assert [m.step for m in read_events(run, "grpo_metrics")] == [1, 2, 3, 4]


def test_a_resumed_run_has_to_be_the_same(preset: Path) -> None:
    """Other SAEs are an error before training, and accepted when that is said."""
    trained(preset, steps=2)
    save_sae(top_k_sae(seed=7), preset.parent / "saes" / "layer-1")
    with pytest.raises(IdentityDriftError, match="`sae` was"):
        trained(preset, resume="latest")
    assert trained(preset, resume="latest", allow_drift=True).step == 4


def test_a_run_is_not_written_over(preset: Path) -> None:
    """Where a run lies, a new one does not begin; where none lies, none is resumed."""
    with pytest.raises(RunNotFoundError, match=r"no run to resume.*without --resume"):
        trained(preset, resume="latest")
    trained(preset, steps=2)
    before = sorted(path.name for path in (preset.parents[1] / "run").iterdir())
    with pytest.raises(RunExistsError, match=r"--resume.*--output-dir.*AEGIR_P5_OUTPUT_DIR"):
        trained(preset)
    assert sorted(path.name for path in (preset.parents[1] / "run").iterdir()) == before


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    """A preparation does not write over a directory that has its names already."""
    (tmp_path / "policy").mkdir()
    found = plan(TrainOptions(policy_preset="tiny", output_dir=tmp_path), environment={})
    with pytest.raises(RunExistsError, match="policy, which would be replaced"):
        train(found, reporter=Told(), interruption=Interruption())
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_what_cannot_be_trained_leaves_nothing(preset: Path) -> None:
    """The run directory is not even made."""
    with pytest.raises(UnmetRequirementsError, match="no such directory"):
        trained(preset, model="/no/such/model")
    assert not (preset.parents[1] / "run").exists()


def test_only_the_reporter_speaks(preset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither trainer nor libraries print anything."""
    trained(preset, steps=1)
    assert capfd.readouterr() == ("", "")
