"""The tokenizer that a run saves with its checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from aegir_adapters.web.token_texts import TokenTexts
from aegir_stream.layout import RunDirectory


def save(run: RunDirectory, step: int, *words: str) -> Path:
    """Save a checkpoint with a tokenizer of these words."""
    path = run.root / f"checkpoint-{step}" / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: at for at, word in enumerate(("<eos>", *words))}
    Tokenizer(WordLevel(vocabulary, unk_token="<eos>")).save(str(path))
    return path


def spelled(texts: TokenTexts, token_ids: list[int]) -> list[str] | None:
    """Return the text of each token."""
    spell = texts.look()
    return spell(token_ids) if spell else None


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has not begun."""
    return RunDirectory.at(tmp_path / "run")


def test_the_newest_checkpoint_spells(run: RunDirectory) -> None:
    """As soon as there is one, and again when there is another; special tokens are tokens."""
    texts = TokenTexts(run)
    assert spelled(texts, [0]) is None
    save(run, 4, "one")
    assert spelled(texts, [0, 1]) == ["<eos>", " one"]
    save(run, 20, "two")
    (run.root / "checkpoint-30").mkdir()
    assert spelled(texts, [0, 1]) == ["<eos>", " two"]
    assert spelled(texts, [7]) == ["#7"]
    assert spelled(texts, []) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 1}', b"[" * 1000])
def test_what_is_no_tokenizer_spells_nothing(run: RunDirectory, content: bytes) -> None:
    """Until it is one."""
    texts = TokenTexts(run)
    save(run, 4, "one").write_bytes(content)
    assert spelled(texts, [0]) is None
    save(run, 4, "one")
    assert spelled(texts, [1]) == ["one"]


def test_it_is_read_once(run: RunDirectory) -> None:
    """A file that is open while its checkpoint is removed is in the way."""
    texts = TokenTexts(run)
    path = save(run, 4, "one")
    assert spelled(texts, [1]) == ["one"]
    known = texts._tokenizer
    assert spelled(texts, [1]) == ["one"]
    assert texts._tokenizer is known
    path.unlink()
    assert spelled(texts, [1]) is None


def test_without_the_package_there_are_numbers(run: RunDirectory) -> None:
    """A server needs no tokenizers to show a run."""
    save(run, 4, "one")
    code = (
        "import importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'tokenizers' else real(name, *a); "
        "from aegir_adapters.web.token_texts import TokenTexts; "
        "from aegir_stream.layout import RunDirectory; "
        f"print(TokenTexts(RunDirectory.at({str(run.root)!r})).look())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "None"
