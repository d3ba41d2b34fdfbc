from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from aegir_adapters.cli.inspect import inspect
from aegir_adapters.cli.notes import note_lines
from aegir_stream.events import Note
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sampling import SamplingRule
from aegir_stream.sinks import JournalSink

if TYPE_CHECKING:
    from pathlib import Path

RULE = SamplingRule(
    record_every_n_tokens=4, token_share=0.25, max_tokens_per_step=100, completions_per_step=8
)
SENTENCE = (
    "one of 4 positions, 0.25 of the tokens, at most 12 of a completion, at most 100 of a step;"
    " drawn with seed 0"
)
SELF_TEST: dict[str, Any] = {
    "layer_calls": {"generation": 1012, "loss": 2},
    "tokens_per_layer": {"0": 5000, "2": 5000},
    "passes": {
        "loss": {"tokens": {"0": 5000, "2": 5000}},
        "decode": {"tokens": {"0": 90, "2": 80}, "why": "Some were cut"},
        "prefill": {"tokens": {}, "why": "vLLM generates"},
    },
    "joined": ["completion", "rewards"],
    "sampling": RULE.describe(),
    "silent_layers": {"7": "Its hook was never called"},
}


def lines_of(kind: str, **detail: Any) -> list[str]:
    """Return the lines of a note."""
    return note_lines(Note(kind=kind, detail=detail))


def test_a_self_test_reads_as_sentences() -> None:
    """Passes with their tokens, what is missing and why, joins, sampling: a line each."""
    assert lines_of("self_test", **SELF_TEST) == [
        "self-test after the first step",
        "  loss: 5,000 tokens at layers 0, 2",
        "  decode: 90 tokens at layer 0, 80 tokens at layer 2 - Some were cut",
        "  prefill: no token - vLLM generates",
        "  layer 7 gave nothing: Its hook was never called",
        "  joined to: completion, rewards",
        "  hooks were called in: generation 1,012, loss 2",
        f"  sampling: {SENTENCE}",
    ]


def test_an_older_self_test_is_still_read() -> None:
    """Without passes and sampling, what is there is told."""
    old = {"layer_calls": {}, "tokens_per_layer": {"0": 9}, "joined": [], "why": "Not attached"}
    assert lines_of("self_test", **old) == [
        "self-test after the first step",
        "  9 tokens at layer 0",
        "  joined to nothing: Not attached",
        "  hooks were called in: nothing",
        "  sampling: every token is recorded",
    ]


def test_drift_names_each_field_with_both_values() -> None:
    """A reader sees in what the resumed run differs."""
    fields = {"top_k": [16, 8], "layers": [[0], [0, 2]]}
    assert lines_of("identity_drift", checkpoint="checkpoint-4", fields=fields) == [
        "differs from what checkpoint-4 was recorded with",
        "  top_k was 16, is 8",
        "  layers was [0], is [0,2]",
    ]


@pytest.mark.parametrize("kind", ["self_test", "sampling", "identity_drift", "pass_cut", "other"])
def test_a_note_that_is_not_understood_is_shown_as_it_is(kind: str) -> None:
    """Another release may write other fields; nothing is hidden and nothing fails."""
    detail = {"token_share": "much", "passes": 3, "fields": [1], "joined": 4}
    (line,) = lines_of(kind, **detail)
    assert line.startswith(f"{kind}: {{")
    assert '"token_share":"much"' in line


def test_inspect_shows_the_notes_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal as lines under the file's name, for programs with each segment's row."""
    recorder = Recorder(JournalSink(RunDirectory.at(tmp_path)))
    recorder.note("sampling", RULE.describe())
    recorder.note("self_test", SELF_TEST)
    assert recorder.close()

    inspect(tmp_path, as_json=True)
    row = next(line for line in capsys.readouterr().out.splitlines() if "self_test" in line)
    assert '"notes":[{"kind":"sampling"' in row
    assert '"tokens_per_completion":12' in row

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    inspect(tmp_path)
    shown = capsys.readouterr().out
    assert "sae_features.live.jsonl (attempt 1)" in shown
    assert "  prefill: no token - vLLM generates" in shown
