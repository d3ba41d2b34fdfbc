"""The demo run, from an empty directory to a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegir_adapters.demo.options import make_run_dir
from aegir_adapters.demo.stages import Stages
from aegir_stream.errors import MissingExtraError

if TYPE_CHECKING:
    from aegir_adapters.demo.display import Reporter
    from aegir_adapters.demo.options import DemoOptions
    from aegir_adapters.demo.summary import DemoSummary


def run_demo(options: DemoOptions, reporter: Reporter) -> DemoSummary:
    """Train a small policy by GRPO, record it, and return what it came to.

    Nothing is downloaded. Blocks until the end, and with `options.keep_serving` until it is
    interrupted (`KeyboardInterrupt` ends the serving, not the caller).

    Raises:
        RunExistsError: the output directory that was named is not empty.
        UnreadableRunError: it cannot be created or read.
        MissingExtraError: a library that the demo needs is not installed.
    """
    run_dir = make_run_dir(options.output_dir)
    stages = Stages(reporter)
    with stages.phase("Load the libraries", total=1):
        try:
            # Takes seconds, so it happens when the terminal already shows what it waits for.
            from aegir_adapters.demo.pipeline import record_run  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "a library", extra="demo") from error
    return record_run(options, run_dir, stages=stages)
