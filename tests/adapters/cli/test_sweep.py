"""`aegir sweep` and `aegir sweeps`, on a model of random weights and the demo's words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner, Result

from aegir_adapters.cli.app import app
from aegir_adapters.cli.indices import indices
from aegir_adapters.cli.sweep import MetricName
from aegir_adapters.cli.sweep_model import find_subject
from aegir_adapters.cli.sweep_picture import draw
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.patching import metrics
from aegir_adapters.patching.hooks import HOOKS
from aegir_adapters.web import sweep_form
from aegir_stream.errors import OptionError, RunNotFoundError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import lease_of
from aegir_stream.sweep_events import SweepCell, SweepEnded, SweepStarted
from aegir_stream.sweep_reader import SweepReader, read_sweep
from aegir_stream.verification import verify
from aegir_stream.views import SweepGrids, SweepView

PAIR = ("--prompt", "41 0a 62 7a =>", "--clean", "41 0a 20 7a =>", "--answer", "SPACE")


def save_model(path: Path, *, layers: int = 2) -> None:
    """Save a model of random weights, with its tokenizer."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    path = tmp_path_factory.mktemp("models") / "little"
    save_model(path)
    return path


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run with a checkpoint that is whole, and a later one that is not."""
    root = tmp_path / "run"
    for name in ("checkpoint-4", "checkpoint-20"):
        (root / name).mkdir(parents=True)
        for file in model.iterdir():
            if name == "checkpoint-4" or "safetensors" not in file.name:
                (root / name / file.name).symlink_to(file)
    return root


def aegir(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def lines_of(result: Result) -> list[dict[str, Any]]:
    """Return what was printed, decoded."""
    assert result.exit_code == 0, (result.output, result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


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


# -- the picture -----------------------------------------------------------------------------------


def grids(columns: int = 5, *, tokens: tuple[str, ...] = (), **changed: Any) -> SweepGrids:
    """Return a sweep of two layers, of which the last cell is missing."""
    words = tokens or tuple(f"t{at}" for at in range(columns))
    started = SweepStarted(
        model="little",
        tokens=words,
        clean_tokens=("other", *words[1:]),
        clean_positions=tuple(range(len(words))),
        hooks=("resid_pre",),
        layers=(0, 10),
        positions=tuple(range(len(words))),
        metric="recovered",
        unpatched=0.0,
        restored=1.0,
        cells=2 * len(words),
        **changed,
    )
    cells = [
        SweepCell(hook="resid_pre", layer=layer, position=at, value=value, below_noise=at == 2)
        for layer in (0, 10)
        for at, value in enumerate([0.25, -0.5, 1e-9, 0.75, *[0.0] * (len(words) - 4)])
    ]
    return SweepView().fold(SweepView().initial(), [started, *cells[:-1]])


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("columns", [4, 5, 40, 300])
def test_the_picture_fits_its_terminal(width: int, columns: int) -> None:
    """Rows of cells are never wider than the terminal; what is wider is folded, in order."""
    lines = draw(grids(columns), width=width)
    rows = [line for line in lines if line.plain[:4].strip() in {"0", "10"} and line.spans]
    assert all(line.cell_len <= width for line in rows)
    assert len(rows) >= 2


def test_the_picture_says_what_the_cells_hold() -> None:
    """Values where there is room; the most, what is below the noise, and what is to come."""
    lines = [line.plain for line in draw(grids(), width=80)]
    (first, second) = [line for line in lines if line.lstrip().startswith(("0 ", "10 "))][-2:]
    assert first.split() == ["0", "0.25", "-0.50", "0.00~", "0.75*", "0.00"]
    assert second.split() == ["10", "0.25", "-0.50", "0.00~", "0.75", "·"]
    assert "most at layer 0, position 3 (t3): 0.75" in lines
    assert any("9 of 10 cells" in line for line in lines)


def test_the_picture_needs_no_colours() -> None:
    """Without them a narrow cell says its ninths, and whether it leads away."""
    lines = draw(grids(40), width=100, colours=False)
    rows = [line for line in lines if line.plain.startswith("  0 ")]
    assert rows[-1].plain[4:16] == "2 4-0~7*0 0 "
    assert not any(span.style and getattr(span.style, "bgcolor", None) for span in rows[-1].spans)


def test_the_picture_obeys_no_token() -> None:
    """What a terminal would take for a command is spelled; wide characters keep their columns."""
    words = ("\x1b[31m", "\n", "[bold]", "漢字", "\u202e", "")
    for width in (30, 120):
        lines = draw(grids(tokens=words), width=width)
        plain = "\n".join(line.plain for line in lines)
        assert "\x1b" not in plain
        assert "\u202e" not in plain
        console = Console(width=width, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
        with console.file:
            console.print(*lines, sep="\n")
        assert all(line.cell_len <= width for line in lines if line.plain.startswith(" "))


def test_a_sweep_that_has_not_begun_or_has_failed_is_drawn() -> None:
    """Whatever the record holds, there is something to show."""
    assert draw(SweepView().initial(), width=80)[0].plain == "The sweep has not begun"
    ended = SweepEnded(status="failed", reason="out of\nmemory", noise_floor=1e-7, elapsed_s=2.0)
    state = SweepView().fold(grids(warnings=("`recovered` is undefined",)), [ended])
    plain = "\n".join(line.plain for line in draw(state, width=80))
    assert "failed in 2.00 s of computing, noise floor 1.0e-07: out of\\nmemory" in plain
    assert "note: `recovered` is undefined" in plain


def test_a_damaged_record_is_drawn(tmp_path: Path) -> None:
    """Columns that its first line has no text for have no label."""
    run = RunDirectory.at(tmp_path)
    run.sweeps_path.mkdir()
    file = run.sweep_file(1)
    file.path.write_text(
        '{"type":"start","model":"m","tokens":["a"],"hooks":["z"],"layers":[0],'
        '"positions":[0,7,-1],"metric":"rank","clean_tokens":["b"],"clean_positions":[9]}\n'
        '{"type":"cell","hook":"z","layer":0,"position":7,"value":"NaN"}\n'
        '{"type":"cell","hook":"z","layer":0,"position":-1,"value":3}\n'
    )
    reader = SweepReader(run, file)
    reader.poll()
    plain = "\n".join(line.plain for line in draw(reader.grids, width=80))
    assert "most at layer 0, position -1 (''): 3.00" in plain
