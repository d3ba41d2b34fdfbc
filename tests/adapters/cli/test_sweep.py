"""`aegir sweep` and `aegir sweeps`, on a model of random weights and the demo's words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from adapters.cli.swept import PAIR, aegir, lines_of, make_run, save_model
from aegir_adapters.cli.indices import indices
from aegir_adapters.cli.sweep_model import find_subject
from aegir_adapters.cli.sweep_options import MetricName
from aegir_adapters.patching import metrics
from aegir_adapters.patching.hooks import HOOKS
from aegir_adapters.web import sweep_form
from aegir_stream.errors import OptionError, RunNotFoundError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import lease_of
from aegir_stream.sweep_reader import read_sweep
from aegir_stream.verification import verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    path = tmp_path_factory.mktemp("models") / "little"
    save_model(path)
    return path


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run with a checkpoint that is whole, and a later one that is not."""
    return make_run(tmp_path / "run", model)


# -- aegir sweep -----------------------------------------------------------------------------------


def test_a_sweep_is_printed_and_recorded_alike(run: Path) -> None:
    """Every line that is printed is a line of the record, which lies in the run."""
    printed = lines_of(aegir("sweep", run, *PAIR, "--foil", "LOWER"))
    (file,) = RunDirectory.at(run).sweeps()
    assert printed == [json.loads(line) for line in file.path.read_text().splitlines()]
    start, *cells, end = printed
    assert (start["model"], start["checkpoint"], start["step"]) == ("checkpoint-4",) * 2 + (4,)
    assert start["tokens"] == ["41", "0a", "62", "7a", "=>"]
    assert start["clean_tokens"] == ["41", "0a", "20", "7a", "=>"]
    assert (start["metric"], start["unpatched"], start["restored"]) == (
        "recovered_logit_diff",
        0.0,
        1.0,
    )
    assert start["hooks"] == ["resid_pre", "attn_out", "mlp_out"]
    assert len({(c["hook"], c["layer"], c["position"]) for c in cells}) == len(cells) == 30
    assert (end["status"], end["cells"], start["cells"]) == ("finished", 30, 30)
    embedded = [c for c in cells if c["hook"] == "resid_pre" and c["layer"] == 0]
    assert {c["position"]: round(c["value"], 4) for c in embedded}[2] == 1.0


def test_a_sweep_leaves_nothing_else_in_the_run(run: Path) -> None:
    """No attempt, no lease, no lane; the checkpoints are as they were."""
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    lines_of(aegir("sweep", run, *PAIR, "--layers", "0", "--hooks", "mlp_out"))
    after = sorted(path.relative_to(run) for path in run.rglob("*"))
    assert set(map(str, set(after) - set(before))) == {"sweeps", "sweeps/00001.jsonl"}
    assert not lease_of(RunDirectory.at(run)).held
    assert list(verify(RunDirectory.at(run))) == []


def test_a_model_alone_keeps_no_record(model: Path, tmp_path: Path) -> None:
    """Unless a run is named that takes it."""
    start, *_ = lines_of(aegir("sweep", model, *PAIR, "--layers", "-1", "--hooks", "attn_out"))
    assert (start["model"], start["layers"], start.get("sweep", "")) == ("little", [1], "")
    assert not (model / "sweeps").exists()
    lines_of(aegir("sweep", model, *PAIR, "--layers", "0", "--output-dir", tmp_path / "kept"))
    assert [file.sweep for file in RunDirectory.at(tmp_path / "kept").sweeps()] == ["00001"]


def test_without_a_clean_prompt_zeros_are_put_in(model: Path) -> None:
    """The metric is then the answer's own, for there is nothing to bring back."""
    start, *cells, _ = lines_of(
        aegir("sweep", model, *PAIR[:2], *PAIR[4:], "--positions", "1:3", "--hooks", "mlp_out")
    )
    assert (start["source"], start["metric"], start["positions"]) == ("zero", "logprob", [1, 2])
    assert "restored" not in start
    assert start["unpatched"] == start["corrupt"]
    assert len(cells) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--layers", "2"), "`layers` to be all, indices in 0..1"),
        (("--positions", "5"), "`positions` to be all, indices in 0..4"),
        (("--hooks", "resid_pre,nowhere"), "nowhere"),
        (("--foil", "LOWER DIGIT"), "`foil` to be as many tokens as the answer has"),
        (("--metric", "logit_diff"), "foil"),
        (("--alpha", "nan"), "`alpha` to be a finite number"),
        (("--checkpoint", "20"), "which is not whole"),
        (("--checkpoint", "7"), "`checkpoint` to be latest or one of checkpoint-4"),
    ],
)
def test_what_cannot_be_swept_is_refused(run: Path, arguments: tuple[str, ...], told: str) -> None:
    """One line names the option, the value and what is allowed; nothing is recorded."""
    result = aegir("sweep", run, *PAIR, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("aegir: ")
    assert told in result.stderr
    assert result.stdout == ""
    assert not (run / "sweeps").exists()


def test_a_directory_without_a_model_is_told_so(tmp_path: Path) -> None:
    """A run that has no checkpoint yet, and what is no run at all."""
    with pytest.raises(RunNotFoundError, match="neither a checkpoint-N nor a config"):
        find_subject(tmp_path, "latest")
    with pytest.raises(RunNotFoundError, match="does not exist"):
        find_subject(tmp_path / "nowhere", "latest")
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(RunNotFoundError, match="no checkpoint whose model is there and whole"):
        find_subject(tmp_path, "latest")


def test_a_checkpoint_belongs_to_its_run(run: Path) -> None:
    """Named by its own path, it is the same as named by the run and its step."""
    subject = find_subject(run / "checkpoint-4", "latest")
    assert subject.run is not None
    assert subject.run.root == run
    assert find_subject(run, "4").checkpoint == subject.checkpoint
    assert find_subject(run, "checkpoint-4").path == find_subject(run, "latest").path


def test_an_unwritable_run_is_told_of(run: Path) -> None:
    """The error names the directory and the way around it."""
    (run / "sweeps").touch()
    result = aegir("sweep", run, *PAIR, "--layers", "0", "--hooks", "mlp_out")
    assert result.exit_code == 1
    assert "--output-dir" in str(result.exception)


def test_an_interruption_cancels_a_sweep(tmp_path: Path) -> None:
    """What was computed is recorded, the record says that it was cancelled, nothing goes on."""
    save_model(tmp_path / "large", layers=24)
    words = " ".join(f"{index:02x}" for index in range(200))
    other = words.replace("00", "ff", 1)
    command = [sys.executable, "-m", "aegir_adapters.cli", "sweep", str(tmp_path / "large")]
    options = ["--prompt", words, "--clean", other, "--answer", "SPACE", "--json"]
    with subprocess.Popen(
        [*command, *options, "--output-dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "start"
        assert json.loads(process.stdout.readline())["type"] == "cell"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert json.loads(rest.splitlines()[-1])["status"] == "cancelled"
    reader = read_sweep(RunDirectory.at(tmp_path / "run"), "00001")
    assert reader is not None
    assert reader.status() == "cancelled"
    assert reader.grids.started is not None
    assert 0 < len(reader.grids.cells) < reader.grids.started.cells
    assert reader.skipped == 0


# -- aegir sweeps ----------------------------------------------------------------------------------


def test_sweeps_are_listed_shown_and_drawn(run: Path, tmp_path: Path) -> None:
    """A line for each; of one that is named its own lines, or a picture in a file."""
    lines_of(aegir("sweep", run, *PAIR, "--layers", "0", "--hooks", "mlp_out"))
    lines_of(aegir("sweep", run, *PAIR, "--layers", "1", "--hooks", "attn_out"))
    rows = lines_of(aegir("sweeps", run))
    assert [(row["sweep"], row["status"], row["cells"]) for row in rows] == [
        ("00001", "finished", 5),
        ("00002", "finished", 5),
    ]
    for name in ("2", "00002", "latest"):
        start, *cells, end = lines_of(aegir("sweeps", run, name))
        assert (start["hooks"], len(cells), end["status"]) == (["attn_out"], 5, "finished")
    picture = tmp_path / "sweep.svg"
    assert aegir("sweeps", run, "1", "--svg", picture).exit_code == 0
    assert picture.read_text().startswith("<svg")
    assert "mlp_out" in picture.read_text()


@pytest.mark.parametrize("name", [None, "latest", "7", "../00001"])
def test_a_sweep_that_is_not_there_is_told_of(tmp_path: Path, name: str | None) -> None:
    """The error says what there is none of."""
    result = aegir("sweeps", tmp_path, *([name] if name else []))
    assert isinstance(result.exception, RunNotFoundError)


# -- indices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("3", (3,)),
        ("-1", (5,)),
        ("0, 2,0", (0, 2)),
        ("4:", (4, 5)),
        (":2,-2:", (0, 1, 4, 5)),
        ("1:6:2", (1, 3, 5)),
    ],
)
def test_what_indices_select(text: str, selected: tuple[int, ...]) -> None:
    """Each once, in the order asked for; negative ones count from the end, as in Python."""
    assert indices(text, count=6, option="layers") == selected


@pytest.mark.parametrize("text", ["", "6", "-7", "1-3", "a", "2:2", "0:7", "::0", "1,,2", "1" * 99])
def test_what_indices_refuse(text: str) -> None:
    """What selects nothing, or something that is not there."""
    with pytest.raises(OptionError, match="`layers`"):
        indices(text, count=6, option="layers")


def test_the_choices_are_those_of_the_engine() -> None:
    """The command and the form offer each metric, and no hook that the engine does not know."""
    assert {metric.value for metric in MetricName} == set(get_args(metrics.MetricName))
    assert set(sweep_form.METRICS) == set(get_args(metrics.MetricName))
    assert set(sweep_form.HOOKS) <= set(HOOKS)
