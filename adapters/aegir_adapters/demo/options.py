"""What can be chosen about a demo run."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from aegir_stream.config import DEFAULT_PORT
from aegir_stream.errors import RunExistsError, UnreadableRunError

RUNS = Path("runs")
"""Where demo runs go unless a directory is named."""


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the phases before reinforcement learning; smaller ones only serve tests.

    Attributes:
        fine_tune_steps: steps of supervised fine-tuning, at least 20.
        rollouts: completions sampled to train the SAEs on.
        sae_steps: training steps of each SAE.
        latents: width of each SAE.
        active_latents: those that are active on a token.
        prompts: how many there are to train on.
    """

    fine_tune_steps: int = 300
    rollouts: int = 2560
    sae_steps: int = 300
    latents: int = 512
    active_latents: int = 16
    prompts: int = 1024


class DemoOptions(Struct, frozen=True, kw_only=True):
    """The choices of a demo run.

    Attributes:
        steps: optimizer steps of reinforcement learning.
        seed: seed of weights, data and sampling.
        output_dir: the run directory; the next free `runs/demo-N` if absent.
        headless: serve no page.
        keep_serving: go on serving the page after the end, until interrupted.
        port: port of the page on the loopback interface; the next free one if it is taken.
        recipe: sizes of the phases before reinforcement learning.
    """

    steps: int = 80
    seed: int = 0
    output_dir: Path | None = None
    headless: bool = False
    keep_serving: bool = False
    port: int = DEFAULT_PORT
    recipe: Recipe = Recipe()


def make_run_dir(output_dir: Path | None, *, runs: Path = RUNS) -> Path:
    """Create the run directory: the one that was named, else the next free `demo-N` in `runs`.

    Raises:
        RunExistsError: the directory that was named holds something already.
        UnreadableRunError: it cannot be created or read.
    """
    try:
        if output_dir is None:
            return _next_free(runs)
        output_dir.mkdir(parents=True, exist_ok=True)
        is_used = any(output_dir.iterdir())
    except OSError as error:
        raise UnreadableRunError(
            f"The output directory `{output_dir or runs}` cannot be used: {error.strerror}",
            hint="Name one that can be written to with --output-dir",
        ) from error
    if is_used:
        raise RunExistsError(
            f"The output directory `{output_dir}` is not empty",
            hint="Name another one with --output-dir, or delete it",
        )
    return output_dir


def _next_free(runs: Path) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (runs / f"demo-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return runs / f"demo-{number}"
