from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from aegir_adapters.demo.display import PlainReporter, Reporter, RichReporter, reporter
from aegir_adapters.demo.separation import FeatureContrast
from aegir_adapters.demo.summary import DemoSummary

SUMMARY = DemoSummary(
    seed=0,
    steps=80,
    reward_before=0.389,
    reward_after=0.931,
    records=68_000,
    layers=(0, 2),
    completions=5120,
    dropped=0,
    overhead_share=0.071,
    features=(
        FeatureContrast(
            layer_index=2,
            feature=417,
            correlation=-0.91,
            mean_rewarded=0.0,
            mean_unrewarded=3.25,
            support=300,
        ),
    ),
    phase_seconds={"Fine-tune the policy": 19.0, "Read the log back": 1.0},
    run_dir=Path("runs/demo-1"),
)


def spoken(to: Reporter, stream: io.StringIO) -> str:
    """Return what a reporter writes for one phase, one line and a summary."""
    with to.phase("Count", total=3) as advance:
        advance(1)
        advance(3, "score 0.50")
    to.say("Watch it live at http://127.0.0.1:8091")
    to.show(SUMMARY)
    return stream.getvalue()


def test_elsewhere_than_on_a_terminal_lines_are_plain() -> None:
    """A stream that is no terminal gets whole lines without control codes."""
    stream = io.StringIO()
    to = reporter(stream)
    assert isinstance(to, PlainReporter)
    text = spoken(to, stream)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "Count: 3 in 0.0 s, score 0.50\n" in text
    assert "Watch it live at http://127.0.0.1:8091\n" in text


def test_a_terminal_gets_bars_and_a_panel() -> None:
    """A phase ends with a full bar, the run with a frame around its figures."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    text = spoken(RichReporter(console), stream)
    assert "3/3" in text
    assert "score 0.50" in text
    assert "What the run came to" in text


def test_both_show_every_figure() -> None:
    """The summary tells rewards, records, overhead, features and the place of the log."""
    plain, framed = io.StringIO(), io.StringIO()
    PlainReporter(plain).show(SUMMARY)
    RichReporter(Console(file=framed, width=120, color_system=None)).show(SUMMARY)
    figures = ("0.389", "0.931", "68,000", "0, 2", "7.1%", "417", "-0.91", "runs/demo-1", "20 s")
    for figure in figures:
        assert figure in plain.getvalue()
        assert figure in framed.getvalue()
