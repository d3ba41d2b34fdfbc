from __future__ import annotations

import io
import subprocess
import sys
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx
import pytest

from aegir_adapters.demo import DemoOptions, PlainReporter, Recipe, run_demo
from aegir_stream.errors import RunExistsError
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aegir_adapters.train import Advance

SMALL = Recipe(fine_tune_steps=20, rollouts=64, sae_steps=5)


class Visitor(PlainReporter):
    """A reporter that looks at the page while the policy is trained."""

    status = 0

    @contextmanager
    def phase(self, title: str, *, total: int) -> Iterator[Advance]:
        """Fetch the page in the middle of the training phase."""
        with super().phase(title, total=total) as advance:
            yield advance
            if "GRPO" in title:
                self.status = httpx.get(self.address).status_code

    def say(self, line: str) -> None:
        """Keep the address."""
        super().say(line)
        if "http://" in line:
            self.address = next(word for word in line.split() if word.startswith("http://"))


def test_a_small_demo_from_end_to_end(tmp_path: Path) -> None:
    """A run goes through all phases, serves its page, and the summary is what the log holds."""
    stream = io.StringIO()
    visitor = Visitor(stream)
    options = DemoOptions(steps=2, output_dir=tmp_path / "run", recipe=SMALL)
    summary = run_demo(options, visitor)
    assert visitor.status == HTTPStatus.OK
    assert summary.steps == 2
    assert summary.completions == 2 * 64
    assert summary.layers == (0, 2)
    assert summary.dropped == 0
    completions = read_events(RunDirectory.at(summary.run_dir), "completions")
    assert summary.records == 2 * sum(completion.length for completion in completions)
    assert 0 < (summary.overhead_share or 0) < 1
    assert (summary.run_dir / "sae" / "layer-2").is_dir()
    assert f"{summary.records:,}" in stream.getvalue()
    assert "Train the SAE of layer 0" in summary.phase_seconds


def test_the_demo_refuses_a_used_directory(tmp_path: Path) -> None:
    """Nothing is trained into a directory that holds files already."""
    (tmp_path / "notes.txt").touch()
    options = DemoOptions(output_dir=tmp_path, headless=True)
    with pytest.raises(RunExistsError, match="is not empty"):
        run_demo(options, PlainReporter(io.StringIO()))


def test_the_demo_says_at_once_what_it_waits_for() -> None:
    """Importing the demo loads none of the libraries that take seconds."""
    code = "import sys, aegir_adapters.demo; print({'torch', 'trl', 'datasets'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
