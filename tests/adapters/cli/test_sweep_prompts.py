"""`aegir sweep` with token ids, pairs of prompts, groups, several metrics, and as a preview."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.cli.swept import PAIR, aegir, lines_of, make_run, save_model, values_of
from aegir_adapters.cli.sweep_groups import read_groups
from aegir_adapters.cli.sweep_prompts import text_or_ids
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_stream.errors import OptionError
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_reader import read_sweep

PAIRS: list[dict[str, Any]] = [
    {"prompt": "41 0a 62 7a =>", "clean_prompt": "41 0a 20 7a =>", "answer": "SPACE"},
    {"prompt": "35 0a 62 7a =>", "clean_prompt": "35 0a 41 7a =>", "answer": "UPPER"},
]
LONGER = {**PAIRS[1], "prompt": "39 35 0a 62 7a =>", "clean_prompt": "39 35 0a 41 7a =>"}
QUICK = ("--hooks", "resid_pre", "--metric", "logprob")
ALONE = ("--prompt", "41 0a =>", "--answer", "SPACE")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    path = tmp_path_factory.mktemp("models") / "little"
    save_model(path)
    return path


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run with a checkpoint."""
    return make_run(tmp_path / "run", model)


def written(directory: Path, pairs: list[dict[str, Any]]) -> Path:
    """Write pairs into a file, with an empty line between them."""
    path = directory / "pairs.jsonl"
    path.write_text("\n\n".join(map(json.dumps, pairs)))
    return path


def options_of(pair: dict[str, Any]) -> list[str]:
    """Return the options that sweep one pair alone."""
    names = {"prompt": "--prompt", "clean_prompt": "--clean", "answer": "--answer"}
    return [word for field, option in names.items() for word in (option, pair[field])]


def what_is_measured(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line without what belongs to one process, or one moment."""
    own = {"sweep", "ts", "host", "pid", "pid_started", "pid_namespace", "elapsed_s"}
    return {key: value for key, value in line.items() if key not in own}


# -- token ids -------------------------------------------------------------------------------------


def test_token_ids_are_as_good_as_text(model: Path) -> None:
    """The record is the same, word for word."""
    tokenizer = build_tokenizer()
    texts = [*PAIR, "--foil", "LOWER"]
    ids: list[str] = []
    for option, text in zip(texts[::2], texts[1::2], strict=True):
        special = option not in {"--answer", "--foil"}
        tokens = tokenizer(text, add_special_tokens=special)["input_ids"]
        ids += [f"{option}-ids", ",".join(map(str, tokens))]
    quick = ("--hooks", "resid_pre", "--layers", "0")
    plain = [what_is_measured(line) for line in lines_of(aegir("sweep", model, *texts, *quick))]
    assert [
        what_is_measured(line) for line in lines_of(aegir("sweep", model, *ids, *quick))
    ] == plain


@given(st.lists(st.integers(0, 10**6), min_size=1), st.sampled_from([",", " ", ", ", " ,"]))
def test_ids_are_read_as_they_are_written(ids: list[int], between: str) -> None:
    """With commas or spaces between them."""
    assert text_or_ids("prompt", None, f" {between.join(map(str, ids))} ") == tuple(ids)


# -- pairs -----------------------------------------------------------------------------------------


def test_each_pair_is_what_it_is_alone_and_their_mean_is_drawn(run: Path) -> None:
    """Cells of every pair are recorded; what is read of the sweep is their mean."""
    path = written(run.parent, PAIRS)
    start, *cells, end = lines_of(aegir("sweep", run, "--pairs", path, *QUICK))
    assert (start["cells"], end["cells"], len(cells)) == (20, 20, 20)
    alone = []
    for index, pair in enumerate(PAIRS):
        own, *own_cells, _ = lines_of(aegir("sweep", run, *options_of(pair), *QUICK))
        told = start["pairs"][index]
        for field in ("tokens", "clean_tokens", "answer", "unpatched", "restored"):
            assert told[field] == pytest.approx(own[field], abs=1e-5)
        assert told["positions"] == told["clean_positions"] == [[at] for at in range(5)]
        alone.append(values_of(own_cells))
        assert values_of(cells, pair=index) == pytest.approx(alone[index], abs=1e-4)
    reader = read_sweep(RunDirectory.at(run), "00001")
    assert reader is not None
    (best,) = end["best"]
    for key, value in alone[0].items():
        cell = reader.grids.cell(*key)
        assert cell is not None
        assert cell.value == pytest.approx((value + alone[1][key]) / 2, abs=1e-4)
        assert cell.value <= best["value"]


def test_a_pair_with_little_to_recover_is_told_of(model: Path, tmp_path: Path) -> None:
    """Shares of next to nothing are large, and would make the mean; other metrics are no shares."""
    pairs = [PAIRS[0], {**PAIRS[1], "clean_prompt": PAIRS[1]["prompt"].replace("35", "34")}]
    seen = set()
    for answer in ("SPACE", "DIGIT", "UPPER", "LOWER", "HIGH", "OTHER"):
        path = written(tmp_path, [{**pair, "answer": answer} for pair in pairs])
        for metric in ("recovered", "logprob"):
            what = ("--pairs", path, "--metric", metric, "--hooks", "mlp_out", "--layers", "0")
            start, *_ = lines_of(aegir("sweep", model, *what))
            apart = sorted(abs(pair["clean"] - pair["corrupt"]) for pair in start["pairs"])
            expected = metric == "recovered" and apart[0] < 0.1 * apart[1]
            told = [one for one in start.get("warnings", []) if "outweigh" in one]
            assert bool(told) == expected
            seen.add(expected)
    assert seen == {True, False}


def test_pairs_may_be_piped_in(model: Path) -> None:
    """From the standard input, as from a file."""
    piped = "".join(f"{json.dumps(pair)}\n" for pair in PAIRS)
    start, *cells, _ = lines_of(
        aegir("sweep", model, "--pairs", "-", "--layers", "0", *QUICK, input=piped)
    )
    assert ([pair["answer"] for pair in start["pairs"]], len(cells)) == (["SPACE", "UPPER"], 10)


def test_an_answer_may_be_that_of_every_pair(model: Path, tmp_path: Path) -> None:
    """One that a pair has of its own wins."""
    without = {key: value for key, value in PAIRS[1].items() if key != "answer"}
    path = written(tmp_path, [PAIRS[0], without])
    start, *_ = lines_of(aegir("sweep", model, "--pairs", path, "--answer", "DIGIT", *QUICK))
    assert [pair["answer"] for pair in start["pairs"]] == ["SPACE", "DIGIT"]


def test_pairs_without_clean_prompts_are_ablated(model: Path, tmp_path: Path) -> None:
    """Zeros are put in, and the answer itself is measured."""
    pairs = [{key: pair[key] for key in ("prompt", "answer")} for pair in PAIRS]
    start, *_ = lines_of(aegir("sweep", model, "--pairs", written(tmp_path, pairs)))
    assert (start["source"], start["metric"]) == ("zero", "logprob")
    assert "clean_tokens" not in start["pairs"][0]


# -- groups ----------------------------------------------------------------------------------------


def test_a_group_is_patched_together(run: Path) -> None:
    """One column of that name; a group of one position is that position."""
    groups = ("--groups", "word=2:4; last = -1;two=2")
    start, *cells, _ = lines_of(aegir("sweep", run, *PAIR, *QUICK, *groups))
    assert (start["columns"], start["positions"]) == (["word", "last", "two"], [0, 1, 2])
    (pair,) = start["pairs"]
    assert pair["positions"] == pair["clean_positions"] == [[2, 3], [4], [2]]
    _, *single, _ = lines_of(aegir("sweep", run, *PAIR, *QUICK))
    found, alone = values_of(cells), values_of(single)
    for layer in (0, 1):
        for column, position in ((1, 4), (2, 2)):
            expected = alone["resid_pre", layer, position]
            assert found["resid_pre", layer, column] == pytest.approx(expected, abs=1e-4)
    # All that differs, patched where it enters, is the clean prompt.
    assert found["resid_pre", 0, 0] == pytest.approx(start["restored"], abs=1e-4)


def test_groups_depend_on_the_length_of_each_prompt(model: Path, tmp_path: Path) -> None:
    """Ranges and negative indices are those of each pair; groups of its own win."""
    own = {**PAIRS[0], "groups": {"first": [1], "last": [0]}}
    path = written(tmp_path, [PAIRS[0], LONGER, own])
    groups = ("--groups", 'first=0;last=-2:,"62"')
    start, *_ = lines_of(aegir("sweep", model, "--pairs", path, *QUICK, *groups))
    assert [pair["positions"] for pair in start["pairs"]] == [
        [[0], [2, 3, 4]],
        [[0], [3, 4, 5]],
        [[1], [0]],
    ]


@given(st.dictionaries(st.from_regex(r"[a-z][a-z ]{0,8}[a-z]", fullmatch=True), st.integers(0, 9)))
def test_groups_are_read_as_they_are_written(groups: dict[str, int]) -> None:
    """Names and places, whatever the space around them; quoted places are text."""
    if not groups:
        return
    text = " ; ".join(f'{name} = {place}, -1 ,"a;b, {place}"' for name, place in groups.items())
    assert read_groups(text).within(10) == {
        name: [place, 9, {"span": f"a;b, {place}"}] for name, place in groups.items()
    }


@pytest.mark.parametrize(
    "text",
    ["", " ", "a", "a=", "=1", "a=1;a=2", "a=1;;b=2", 'a="x', 'a="x"y', "a=1,,2", 'a=""', "a=1=2"],
)
def test_what_groups_refuse(text: str) -> None:
    """What names no group, no place, or one of them twice."""
    with pytest.raises(OptionError, match="`groups`"):
        read_groups(text).within(10)


# -- metrics and the preview -----------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
def test_every_metric_is_a_sweep_of_its_own(run: Path, *, pairs: bool) -> None:
    """The first is printed; each is recorded as it would be if it were asked for alone."""
    names = ("recovered", "kl", "rank", "logprob")
    what = ["--pairs", str(written(run.parent, PAIRS))] if pairs else [*PAIR]
    what += ["--hooks", "resid_pre,mlp_out"]
    result = aegir("sweep", run, *what, "--metric", ",".join(names))
    printed = lines_of(result)
    assert "Also recorded: kl as sweep 00002, rank as sweep 00003" in result.stderr
    files = RunDirectory.at(run).sweeps()
    assert [file.sweep for file in files] == ["00001", "00002", "00003", "00004"]
    assert printed == [json.loads(line) for line in files[0].path.read_text().splitlines()]
    for name, file in zip(names, files, strict=True):
        start, *cells, end = (json.loads(line) for line in file.path.read_text().splitlines())
        own, *own_cells, own_end = lines_of(
            aegir("sweep", run, *what, "--metric", name, "--output-dir", run.parent / "other")
        )
        assert (start["metric"], start["sweep"]) == (name, file.sweep)
        for field in ("unpatched", "restored", "corrupt", "clean", "lower_is_better"):
            assert start.get(field) == pytest.approx(own.get(field), abs=1e-4)
        for pair in range(2 if pairs else 1):
            expected = values_of(own_cells, pair=pair)
            assert values_of(cells, pair=pair) == pytest.approx(expected, abs=1e-3)
        assert [one["hook"] for one in end["best"]] == [one["hook"] for one in own_end["best"]]
        assert end["cells"] == own_end["cells"]


def test_further_metrics_need_a_run(model: Path, tmp_path: Path) -> None:
    """Where nothing is recorded nobody would read them."""
    several = ("--metric", "logprob,rank", "--layers", "0", "--hooks", "mlp_out")
    result = aegir("sweep", model, *ALONE, *several)
    assert result.exit_code == 2
    assert "Expected one `metric` where no run takes the record" in result.stderr
    lines_of(aegir("sweep", model, *ALONE, *several, "--output-dir", tmp_path / "kept"))
    assert len(RunDirectory.at(tmp_path / "kept").sweeps()) == 2


def test_a_preview_estimates_and_says_so(run: Path) -> None:
    """No cell is computed; those that follow without computing are what they are."""
    exact, *cells, _ = lines_of(aegir("sweep", run, *PAIR))
    start, *estimates, end = lines_of(aegir("sweep", run, *PAIR, "--preview"))
    assert "method" not in exact
    assert (start["method"], start.get("computed")) == ("attribution", None)
    assert start["estimated"] == start["cells"] - start["free"]
    assert "noise_floor" not in end
    assert len(estimates) == len(cells) == 30
    known, guessed = values_of(cells), values_of(estimates)
    free = {(c["hook"], c["layer"], c["position"]) for c in estimates if c.get("free")}
    assert free
    assert {key: guessed[key] for key in free} == pytest.approx(
        {key: known[key] for key in free}, abs=1e-5
    )
    assert guessed != pytest.approx(known, abs=1e-3)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Expected `prompt`, got nothing. Give --prompt, --prompt-ids or --pairs"),
        (("--prompt", "41"), "Expected `answer`, got nothing"),
        ((*ALONE, "--prompt-ids", "1"), "`prompt` or `prompt_ids`, got both"),
        ((*ALONE, "--clean-ids", "1;2"), "`clean_ids` to be token ids with commas"),
        ((*ALONE, "--foil-ids", ""), "`foil_ids` to be token ids"),
        ((*ALONE, "--metric", "recovered"), "another one without a clean prompt"),
        ((*ALONE, "--metric", "logit_diff"), "Expected a `foil`, which logit_diff compares"),
        ((*ALONE, "--metric", "logprob,nll"), "`metric` to be one or more of recovered, "),
        ((*ALONE, "--groups", "a"), "`groups` to be NAME=POSITIONS"),
        ((*ALONE, "--groups", "a=0", "--positions", "1"), "no `positions` beside `groups`"),
        (("--pairs", "nowhere.jsonl"), "`pairs` to be a file, got `nowhere.jsonl`, which cannot"),
    ],
)
def test_what_makes_no_sweep_is_refused_before_a_model_is_looked_for(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    """One line names the option, the value and what is allowed."""
    result = aegir("sweep", tmp_path / "nowhere", *arguments)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("aegir: ")
    assert told in result.stderr


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("\n \n", "pairs.jsonl`, which is empty"),
        ('\n{"prompt": \n', "pairs.jsonl:2)"),
        ("[1]", "it is JSON, but no object"),
        ('{"prompt": "41"}', "an `answer` of every pair, got none of pair 0"),
        (
            '{"prompt": "4", "answer": "A"}\n{"prompt": "4", "clean_prompt": "2", "answer": "A"}',
            "got one without: pair 0",
        ),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, lines: str, told: str) -> None:
    """The line is named, or the pair."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines)
    result = aegir("sweep", tmp_path, "--pairs", path)
    assert result.exit_code == 2, result.exception
    assert told in result.stderr
    beside = aegir("sweep", tmp_path, "--pairs", path, *ALONE)
    assert beside.exit_code == 2


@pytest.mark.parametrize(
    ("pairs", "arguments", "told"),
    [
        ([{**PAIRS[0], "source": "41"}], (), "`pairs[0].source` to be left out"),
        ([PAIRS[0], {**PAIRS[1], "prompt": 7}], (), "`pairs[1].prompt` to be text"),
        ([PAIRS[0], LONGER], (), "`pairs[1].positions` to be as many as in pairs[0]"),
        ([PAIRS[0], LONGER], ("--groups", "a=5"), "`pairs[0].groups` to be all, indices in 0..4"),
        (PAIRS, ("--clean", "41"), "no `clean` beside `pairs`"),
        (PAIRS, ("--positions", "0"), "no `positions` beside `pairs`"),
        (PAIRS, ("--metric", "logit_diff"), "Expected a `foil`"),
        (PAIRS, ("--preview", "--metric", "rank"), "rank"),
    ],
)
def test_what_a_model_cannot_sweep_is_refused(
    run: Path, pairs: list[dict[str, Any]], arguments: tuple[str, ...], told: str
) -> None:
    """The pair and the field are named; nothing is recorded."""
    result = aegir("sweep", run, "--pairs", written(run.parent, pairs), *arguments)
    assert result.exit_code == 2, result.exception
    assert told in result.stderr
    assert not (run / "sweeps").exists()


# -- aegir sweeps ----------------------------------------------------------------------------------


def test_sweeps_say_what_they_are_and_show_one_pair(run: Path, tmp_path: Path) -> None:
    """Rows tell method, pairs and groups; `--pair` shows one pair as if it were alone."""
    lines_of(aegir("sweep", run, *PAIR, *QUICK, "--preview"))
    groups = ("--groups", "first=0;last=-1")
    path = written(tmp_path, [PAIRS[0], LONGER])
    _, *cells, _ = lines_of(aegir("sweep", run, "--pairs", path, *QUICK, *groups))
    preview, mean = lines_of(aegir("sweeps", run))
    assert (preview["method"], preview["pairs"], preview["columns"]) == ("attribution", 1, [])
    assert (mean["method"], mean["pairs"], mean["columns"]) == ("exact", 2, ["first", "last"])
    start, *own, end = lines_of(aegir("sweeps", run, "2", "--pair", "1"))
    assert start["tokens"] == LONGER["prompt"].split()
    assert values_of(own) == values_of(cells, pair=1)
    assert (start["cells"], end["cells"]) == (4, 4)
    assert lines_of(aegir("sweeps", run, "--pair", "1")) == [start, *own, end]
    picture = tmp_path / "pair.svg"
    assert aegir("sweeps", run, "2", "--pair", "0", "--svg", picture).exit_code == 0
    assert "last" in picture.read_text()
    result = aegir("sweeps", run, "2", "--pair", "2")
    assert isinstance(result.exception, OptionError)
    assert "`pair` within 0..1, got 2" in str(result.exception)
