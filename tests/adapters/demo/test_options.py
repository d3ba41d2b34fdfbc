from __future__ import annotations

from pathlib import Path

import pytest

from aegir_adapters.demo.options import make_run_dir
from aegir_stream.errors import RunExistsError, UnreadableRunError


def test_runs_are_numbered(tmp_path: Path) -> None:
    """Without a name, a run takes the next free number."""
    runs = tmp_path / "runs"
    assert make_run_dir(None, runs=runs) == runs / "demo-1"
    assert make_run_dir(None, runs=runs) == runs / "demo-2"


def test_a_named_directory_is_created(tmp_path: Path) -> None:
    """A directory that was named is taken as it is, parents and all."""
    named = tmp_path / "a" / "b"
    assert make_run_dir(named) == named
    assert named.is_dir()


def test_a_used_directory_is_refused(tmp_path: Path) -> None:
    """A run never mixes with files that were there before it."""
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(RunExistsError, match=r"is not empty.*--output-dir"):
        make_run_dir(tmp_path)


def test_an_unusable_directory_is_refused(tmp_path: Path) -> None:
    """A path that cannot be a directory gets an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(UnreadableRunError, match="file/run"):
        make_run_dir(tmp_path / "file" / "run")
