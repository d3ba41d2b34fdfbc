from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from aegir_adapters.cli.app import app
from aegir_stream.batch import Events
from aegir_stream.errors import OptionError
from aegir_stream.events import Completion
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink
from views.features import Event, record
from views.policies import PLANTED, planted


def recorded(run: Path, events: Sequence[Event]) -> Path:
    """Write a run as a trainer does, a step at a time."""
    recorder = Recorder(JournalSink(RunDirectory.at(run)))
    for step, one_step in groupby(events, key=lambda event: event.step):
        listed = list(one_step)
        for stream, is_line in (("completions", True), ("sae_features", False)):
            of_stream = tuple(e for e in listed if isinstance(e, Completion) == is_line)
            if of_stream:
                recorder.emit(Events(stream, of_stream, step=step))
    assert recorder.close()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose reward depends on one latent."""
    return recorded(tmp_path_factory.mktemp("features") / "run", planted(0))


def features(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["features", *map(str, arguments)])


def rows(result: Result) -> list[dict[str, Any]]:
    """Return what was printed, one object a line."""
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_planted_latent_comes_first(run: Path) -> None:
    """With its sign, its interval, what is left beside the length, and the control."""
    result = features(run, "--top", "3")
    first, *others = rows(result)
    assert len(others) == 2
    assert (first["layer"], first["latent"]) == (4, PLANTED)
    assert first["difference_low"] > 0 < first["rho_low"]
    assert first["length_controlled"] > 0.3
    assert first["p_adjusted"] < 0.05 < first["control_p_adjusted"]
    assert 0 < first["firing_rate"] < 1
    assert "of 2" in result.stderr
    assert "layer 4: 29 groups, 1 more with equal rewards" in result.stderr


def test_without_numpy_the_figures_are_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are faster and say nothing else."""
    arrays = rows(features(run))
    monkeypatch.setattr("aegir_adapters.cli.features.find_spec", lambda _: None)
    pure = rows(features(run))
    assert len(pure) == len(arrays) == 20
    for one, other in zip(pure, arrays, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "expected"), [("3:5", {3, 4, 5}), (":2", {1, 2}), ("14:", {14, 15}), ("7", {7})]
)
def test_steps_are_those_that_are_asked_for(run: Path, steps: str, expected: set[int]) -> None:
    """Both ends count, and either may be left out."""
    shown = rows(features(run, "--emergence", "--steps", steps))
    assert {
        step for row in shown for step in range(row["first_step"], row["last_step"] + 1)
    } >= expected
    assert sum(row["tokens"] for row in shown) == sum(
        event.step in expected for event in planted(0) if not isinstance(event, Completion)
    )


def test_the_vocabulary_is_told(run: Path) -> None:
    """Latents that successes sustain, the most common first."""
    result = features(run, "--vocabulary", "--share", "0.4", "--gate", "0.5", "--top", "5")
    first, *others = rows(result)
    assert first["latent"] == PLANTED
    assert first["share_passed"] > 2 * first["share_failed"]
    assert all(row["share_passed"] <= first["share_passed"] for row in others)
    assert "earned 0.5 or more" in result.stderr


def test_a_reward_function_is_found_by_its_name(run: Path) -> None:
    """The advantage of this policy is minus its reward; a name that nobody has is refused."""
    only = rows(features(run, "--reward", "only", "--top", "1"))
    against = rows(features(run, "--reward", "advantage", "--top", "1"))
    assert only[0]["latent"] == against[0]["latent"] == PLANTED
    assert against[0]["difference"] < 0 < only[0]["difference"]
    refused = features(run, "--reward", "style")
    assert isinstance(refused.exception, OptionError)
    assert "R, advantage, only, got `style`" in str(refused.exception)


@pytest.mark.parametrize("steps", ["x", "", "1:2:3", "-4", "4:-"])
def test_what_is_no_span_of_steps_is_refused(run: Path, steps: str) -> None:
    """The message shows what one looks like."""
    refused = features(run, f"--steps={steps}")
    assert isinstance(refused.exception, OptionError)
    assert f"got `{steps}`" in str(refused.exception)


def test_a_run_without_completions_has_rates(tmp_path: Path) -> None:
    """Supervised training has no reward; what fires most often is told all the same."""
    events = [record(None, {1: 2.0} if t else {1: 1.0, 2: 5.0}, token=t, step=3) for t in range(4)]
    result = features(recorded(tmp_path, events))
    first, second = rows(result)
    assert first == {
        "layer": 0,
        "latent": 1,
        "firing_rate": 1.0,
        "mean": 1.75,
        "mean_active": 1.75,
        "highest": 2.0,
        "first_step": 3,
        "last_step": 3,
    }
    assert second["firing_rate"] == 0.25
    assert "No completion can be compared" in result.stderr


def test_a_terminal_gets_a_table_and_labels(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eighty columns hold all figures, or the most telling ones and what a latent stands for."""
    table = tmp_path / "labels.csv"
    table.write_text(f"index,label\n{PLANTED},types the bytes\n", "utf-8")
    monkeypatch.setenv("COLUMNS", "80")
    labelled = on_terminal("--top", "2", "--labels", f"4={table}", run)
    assert "types the bytes" in labelled
    assert "chance" not in labelled
    assert "chance" in on_terminal("--top", "2", run)
    assert "turnover" in on_terminal("--emergence", run)
    assert "in successes" in on_terminal("--vocabulary", run)


def on_terminal(*arguments: str | Path) -> str:
    """Return what the command shows on a terminal, where nothing is cut."""
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(io.StringIO()):
        app(["features", *map(str, arguments)], standalone_mode=False)
    shown = screen.getvalue()
    assert "…" not in shown
    return shown


def test_a_label_file_belongs_to_one_layer(tmp_path: Path) -> None:
    """Latent 3 of one layer is not latent 3 of another."""
    labels = tmp_path / "labels.csv"
    labels.write_text("index,label\n1,a\n", "utf-8")
    events = [record(None, {1: 2.0}, layer=layer) for layer in (0, 2)]
    both = recorded(tmp_path / "run", events)
    refused = features(both, "--labels", labels)
    assert isinstance(refused.exception, OptionError)
    assert "LAYER=FILE" in str(refused.exception)
    shown = rows(features(both, "--labels", labels, "--layer", "2"))
    assert [(row["layer"], row["label"]) for row in shown] == [(2, "a")]
    assert [row.get("label") for row in rows(features(both, "--labels", f"0={labels}"))] == [
        "a",
        None,
    ]
