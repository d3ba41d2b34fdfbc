"""`aegir demo`: a real run to watch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aegir_adapters.cli.extras import require
from aegir_stream.config import DEFAULT_PORT, PORT_VARIABLE

__all__ = ["demo"]


def demo(
    *,
    steps: Annotated[int, typer.Option(min=1, help="GRPO steps.")] = 80,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and sampling.")] = 0,
    output_dir: Annotated[
        Path | None, typer.Option(help="Run directory; the next free runs/demo-N if absent.")
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            envvar=PORT_VARIABLE,
            help="Port of the page; the next free if taken.",
        ),
    ] = DEFAULT_PORT,
    headless: Annotated[bool, typer.Option("--headless", help="Serve no page.")] = False,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Go on serving the page after the end.")
    ] = False,
) -> None:
    """Train a small policy with GRPO, two SAEs on it, and watch both: about a minute on a CPU.

    Nothing is downloaded. The page's address is printed; the run stays in its directory.

    Example: aegir demo --seed 1 --keep-serving
    """
    require("torch", "transformers", "trl", "datasets", "tokenizers", "safetensors", extra="demo")
    from aegir_adapters.demo import DemoOptions, reporter, run_demo  # noqa: PLC0415 - needs the extra

    options = DemoOptions(
        steps=steps,
        seed=seed,
        output_dir=output_dir,
        headless=headless,
        keep_serving=keep_serving,
        port=port,
    )
    run_demo(options, reporter(sys.stdout))
