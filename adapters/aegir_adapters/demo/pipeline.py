"""The phases of the demo, put together: the preset `tiny`, a page, and a summary."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from aegir_adapters.demo.preparation import prepare
from aegir_adapters.demo.serving import serve_near, wait_for_interrupt
from aegir_adapters.demo.summary import RecordedView, summarise
from aegir_adapters.train import AssetPaths, Interruption, load_preset, reinforce
from aegir_adapters.train.libraries import hub_offline, quiet_libraries, torch_threads
from aegir_adapters.trainer import default_layers_to_hook
from aegir_adapters.web import create_app
from aegir_stream.config import P5Cfg
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import replay

if TYPE_CHECKING:
    from pathlib import Path

    from aegir_adapters.demo.options import DemoOptions
    from aegir_adapters.demo.stages import Stages
    from aegir_adapters.demo.summary import DemoSummary, Recorded
    from aegir_adapters.train import Preset


def record_run(options: DemoOptions, run_dir: Path, *, stages: Stages) -> DemoSummary:
    """Go through all phases in `run_dir` and return what the run came to."""
    preset, assets = _preset(options), AssetPaths(root=run_dir)
    with ExitStack() as stack:
        stack.enter_context(hub_offline())
        stack.enter_context(quiet_libraries())
        stack.enter_context(torch_threads(preset.devices.threads))
        if not options.headless:
            _serve(options, run_dir, stages, stack)
        layers = default_layers_to_hook(preset.policy.layers or 0, preset.sae.hooked)
        settings = msgspec.structs.asdict(options.recipe)
        facts = prepare(
            assets, layers=layers, seed=options.seed, settings=settings, reporter=stages
        )
        reinforce(
            assets.placed(preset),
            run=P5Cfg(output_dir=str(run_dir)),
            layers=layers,
            reporter=stages,
            interruption=Interruption(),
        )
        summary = summarise(
            _read_back(run_dir, stages),
            seed=options.seed,
            reward_before=facts["reward_before"],
            phase_seconds=stages.seconds,
            run_dir=run_dir,
        )
        stages.reporter.show(summary)
        if options.keep_serving and not options.headless:
            stages.say("Still serving; Ctrl-C ends it")
            wait_for_interrupt()
    return summary


def _preset(options: DemoOptions) -> Preset:
    tiny = load_preset("tiny")
    grpo = msgspec.structs.replace(tiny.grpo, steps=options.steps)
    return msgspec.structs.replace(tiny, seed=options.seed, grpo=grpo)


def _serve(options: DemoOptions, run_dir: Path, stages: Stages, page: ExitStack) -> None:
    server = page.enter_context(serve_near(create_app(run_dir), port=options.port))
    if options.port and server.port != options.port:
        stages.say(f"Port {options.port} is in use, port {server.port} is not")
    stages.say(f"Watch it at {server.address} (there is nothing to see before GRPO starts)")


def _read_back(run_dir: Path, stages: Stages) -> Recorded:
    with stages.phase("Read the log back", total=1):
        return replay(RunDirectory.at(run_dir), RecordedView()).state
