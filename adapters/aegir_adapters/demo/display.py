"""What a demo run says while it runs: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from aegir_adapters import train
from aegir_adapters.demo.summary import FINAL_STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegir_adapters.demo.separation import FeatureContrast
    from aegir_adapters.demo.summary import DemoSummary

REFRESHES_PER_SECOND = 4
"""Seldom enough to take no time from the training thread."""


class Reporter(train.Reporter, Protocol):
    """Who is told about a demo run."""

    def show(self, summary: DemoSummary) -> None:
        """Tell what the run came to."""
        ...


class RichReporter:
    """Draw one progress bar per phase on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def phase(self, title: str, *, total: int) -> Iterator[train.Advance]:
        """Draw a bar that stays when the phase has ended."""
        columns = (
            TextColumn("{task.description:<25}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(
            *columns, console=self._console, refresh_per_second=REFRESHES_PER_SECOND
        ) as progress:
            task = progress.add_task(title, total=total, note="")

            reached = total

            def advance(done: int, note: str = "") -> None:
                nonlocal reached
                reached = done
                progress.update(task, completed=done, note=note)

            yield advance
            progress.update(task, completed=reached)

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, summary: DemoSummary) -> None:
        """Print the summary in a frame."""
        grid = Table.grid(padding=(0, 2))
        for name, value in summary_rows(summary):
            grid.add_row(Text(name, style="bold"), Text(value))
        self._console.print(Panel(grid, title="What the run came to", expand=False))


class PlainReporter:
    """Write one line when a phase begins and one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def phase(self, title: str, *, total: int) -> Iterator[train.Advance]:
        """Write the title, and when the phase has ended its time and newest figure."""
        reached, newest = total, ""

        def advance(done: int, note: str = "") -> None:
            nonlocal reached, newest
            reached, newest = done, note

        self.say(f"{title} ...")
        started = perf_counter()
        yield advance
        figure = f", {newest}" if newest else ""
        self.say(f"{title}: {reached} in {perf_counter() - started:.1f} s{figure}")

    def say(self, line: str) -> None:
        """Write a line."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def show(self, summary: DemoSummary) -> None:
        """Write the summary, one line per figure."""
        self.say("What the run came to:")
        for name, value in summary_rows(summary):
            for line in value.splitlines():
                self.say(f"  {name:<26}{line}")


def reporter(stream: TextIO) -> Reporter:
    """Return the reporter that fits `stream`: bars on a terminal, plain lines elsewhere."""
    return RichReporter(Console(file=stream)) if stream.isatty() else PlainReporter(stream)


def summary_rows(summary: DemoSummary) -> list[tuple[str, str]]:
    """Return the figures of a summary as names and texts."""
    layers = ", ".join(map(str, summary.layers))
    return [
        ("reward before", f"{summary.reward_before:.3f} (sampled from the fine-tuned policy)"),
        (
            "reward after",
            f"{summary.reward_after:.3f} (last {FINAL_STEPS} of {summary.steps} steps)",
        ),
        ("SAE records", f"{summary.records:,} of layers {layers}, {summary.dropped:,} dropped"),
        ("completions", f"{summary.completions:,}"),
        ("overhead of recording", _share(summary.overhead_share)),
        (
            "best separating features",
            "\n".join(map(_feature_row, summary.features)) or "none found",
        ),
        ("time", f"{sum(summary.phase_seconds.values()):.0f} s"),
        ("the log", str(summary.run_dir)),
    ]


def _feature_row(feature: FeatureContrast) -> str:
    return (
        f"layer {feature.layer_index} feature {feature.feature}: "
        f"activation {feature.mean_rewarded:.2f} if rewarded, {feature.mean_unrewarded:.2f} if not "
        f"(r = {feature.correlation:+.2f})"
    )


def _share(overhead: float | None) -> str:
    return "unknown" if overhead is None else f"{overhead:.1%} of the step time"
