"""Sweeps as they are drawn in a terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from adapters.cli.swept import cell
from aegir_adapters.cli.sweep_display import print_picture
from aegir_adapters.cli.sweep_picture import draw
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import (
    SweepCell,
    SweepEnded,
    SweepPair,
    SweepSkipped,
    SweepStarted,
    SweptLatent,
)
from aegir_stream.sweep_reader import SweepReader
from aegir_stream.views import SweepGrids, SweepView


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


# -- pairs, groups, previews, latents --------------------------------------------------------------

FIRST = SweepPair(
    tokens=("a", "b", "=>"),
    positions=((0, 1), (2,)),
    clean_tokens=("a", "c", "=>"),
    clean_positions=((0, 1), (2,)),
    answer="SPACE",
    foil="LOWER",
    unpatched=0.0,
    restored=1.0,
    corrupt=-6.0,
    clean=2.0,
)
SECOND = replace(FIRST, tokens=("d", "b", "=>"), answer="DIGIT", corrupt=-2.0, clean=4.0)


def paired(*pairs: SweepPair, **changed: Any) -> SweepGrids:
    """Return a sweep of groups of positions, and of pairs, all of it there."""
    started = SweepStarted(
        model="little",
        tokens=pairs[0].tokens,
        clean_tokens=pairs[0].clean_tokens,
        answer=pairs[0].answer,
        hooks=("resid_pre",),
        layers=(3,),
        positions=(0, 1),
        metric="recovered",
        columns=("subject", "last"),
        pairs=pairs,
        cells=2 * len(pairs),
        computed=1,
    )
    cells = [
        cell("resid_pre", 3, column, 0.5 * index + 0.25 * column, pair=index)
        for index in range(len(pairs))
        for column in (0, 1)
    ]
    return SweepView().fold(SweepView().initial(), [replace(started, **changed), *cells])


def drawn(state: SweepGrids, **options: Any) -> list[str]:
    """Return what is drawn, as plain text."""
    return [line.plain.rstrip() for line in draw(state, **{"width": 80, **options})]


def test_a_mean_is_called_one_and_its_columns_have_names() -> None:
    """How many pairs, what each measures, their mean baselines, and values of the mean."""
    lines = drawn(paired(FIRST, SECOND))
    assert lines[0] == "little  recovered of SPACE against LOWER, DIGIT against LOWER"
    assert "mean of 2 pairs, of which the first:" in lines
    assert "unpatched -4.00, clean 3.00" in lines
    assert "resid_pre  layer by group, mean of 2 pairs" in lines
    assert any(line.split() == ["subject", "last"] for line in lines)
    assert any(line.split() == ["…", "=>"] for line in lines)
    assert any(line.split() == ["3", "0.25", "0.50*"] for line in lines)
    assert "most at layer 3, last (=>): 0.50" in lines
    assert not any("pair" in line for line in drawn(paired(FIRST)))


def test_a_pair_is_drawn_alone() -> None:
    """With its own prompt, answer, baselines and values; one that is not there is none."""
    lines = drawn(paired(FIRST, SECOND), pair=1)
    assert lines[:2] == ["little  recovered of DIGIT against LOWER", "pair 1 alone"]
    assert "patched d b =>" in lines
    assert "unpatched -2.00, clean 4.00" in lines
    assert "2 of 2 cells" in lines
    assert any(line.split() == ["3", "0.50", "0.75*"] for line in lines)
    # The words of a group stand below each other.
    at = next(index for index, line in enumerate(lines) if line.split() == ["subject", "last"])
    assert [line.split() for line in lines[at + 1 : at + 3]] == [["d", "=>"], ["b"]]
    with pytest.raises(IndexError):
        draw(paired(FIRST), width=80, pair=1)


@pytest.mark.parametrize("width", [16, 24, 40, 200])
def test_names_of_groups_fit_their_terminal(width: int) -> None:
    """A long name is folded; nothing is wider than the terminal."""
    names = ("a very long name of a group", "\x1b[31mred", "漢字" * 9)
    pair = replace(FIRST, positions=((0,), (1,), (2,)), clean_positions=((0,), (1,), (2,)))
    state = paired(pair, columns=names, positions=(0, 1, 2))
    lines = draw(state, width=width)
    assert all(line.cell_len <= width for line in lines if line.plain.startswith("   "))
    assert not any("\x1b" in line.plain for line in lines)


def test_many_answers_are_counted() -> None:
    """Three of them are named."""
    pairs = [replace(FIRST, answer=f"A{index}", foil=None) for index in range(5)]
    assert drawn(paired(*pairs))[0] == "little  recovered of A0, A1, A2 and 2 more"


def test_an_estimate_is_called_one() -> None:
    """In the heading, at each grid, and in what was counted."""
    lines = drawn(paired(FIRST, method="attribution", computed=0, estimated=2, free=0))
    assert lines[1].startswith("estimated from one gradient")
    assert "resid_pre  layer by group, estimated" in lines
    assert "2 of 2 cells: 0 free, 2 estimated" in lines


def test_a_latent_is_named_with_where_it_fires() -> None:
    """Hardest first; in each prompt that is known, and that it does not where it does not."""
    latent = SweptLatent(
        layer=3, index=17, sae="sae/layer-3", activations=(0.0, 0.0), clean_activations=(0.5, 2.25)
    )
    lines = drawn(paired(FIRST, pairs=(), columns=(), source="latent", latent=latent))
    assert "latent 3:17 as active as in the clean prompt  of the SAE sae/layer-3" in lines
    assert "in the clean prompt it fires 2.25 at 1 (c), 0.50 at 0 (a)" in lines
    assert "in the patched prompt it does not fire" in lines
    alone = replace(latent, activations=(1.0,) * 9, clean_activations=())
    lines = drawn(
        paired(FIRST, pairs=(), columns=(), clean_tokens=None, source="latent", latent=alone)
    )
    assert "latent 3:17 ablated  of the SAE sae/layer-3" in lines
    assert any(line.endswith("1.00 at 4 and 4 more") for line in lines)


def test_without_a_clean_prompt_what_is_lost_most_is_told() -> None:
    """And small differences have as many decimals as tell them apart."""
    started = SweepStarted(
        model="little",
        tokens=("a", "b"),
        hooks=("mlp_out",),
        layers=(0,),
        positions=(0, 1),
        metric="logprob",
        answer="b",
        source="zero",
        unpatched=-0.5,
        corrupt=-0.5,
        cells=2,
    )
    for lost, shown in ((-3.5, "-3.50"), (-0.75, "-0.750"), (-0.5123, "-0.5123")):
        found = [cell("mlp_out", 0, 0, -0.5), cell("mlp_out", 0, 1, lost)]
        lines = drawn(SweepView().fold(SweepView().initial(), [started, *found]))
        (told,) = [line for line in lines if line.startswith("most at")]
        assert told.endswith(f"least at layer 0, position 1 (b): {shown}")
        assert "put in  zero" in lines
    falling = replace(started, metric="kl", lower_is_better=True)
    found = [cell("mlp_out", 0, 0, 0.5), cell("mlp_out", 0, 1, 3.5)]
    lines = drawn(SweepView().fold(SweepView().initial(), [falling, *found]))
    assert any(line.endswith("least at layer 0, position 1 (b): 3.50") for line in lines)


def test_a_skipped_position_says_of_which_pair_it_is() -> None:
    """Where there are several."""
    skipped = (SweepSkipped(position=1, reason="no counterpart", pair=1),)
    lines = drawn(paired(FIRST, SECOND, skipped=skipped))
    assert "position 1 of pair 1 is not swept: no counterpart" in lines
    lines = drawn(paired(FIRST, skipped=skipped))
    assert "position 1 is not swept: no counterpart" in lines


@pytest.mark.parametrize("wish", ["", "1"])
def test_a_terminal_without_colours_gets_digits(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    """Also where it has colours, and the environment asks for none (NO_COLOR)."""
    monkeypatch.setenv("NO_COLOR", wish)
    monkeypatch.setenv("TERM", "xterm-256color")
    written = io.StringIO()
    print_picture(grids(40), Console(file=written, width=100, force_terminal=True))
    shown = Text.from_ansi(written.getvalue()).plain
    assert ("2 4-0~7*0 0 " in shown) == bool(wish)
