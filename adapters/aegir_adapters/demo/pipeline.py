"""The phases of the demo, put together."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from aegir_adapters.demo.libraries import hub_offline, one_torch_thread, quiet_libraries
from aegir_adapters.demo.policy import build_policy, fine_tune
from aegir_adapters.demo.rollouts import collect_rollouts
from aegir_adapters.demo.serving import serve_near, wait_for_interrupt
from aegir_adapters.demo.summary import RecordedView, summarise
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.demo.training import build_trainer
from aegir_adapters.sae import fidelity, save_sae, train_topk
from aegir_adapters.trainer import default_layers_to_hook, observe
from aegir_adapters.web import create_app
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import replay

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from aegir_adapters.demo.options import DemoOptions
    from aegir_adapters.demo.rollouts import Rollouts
    from aegir_adapters.demo.stages import Stages
    from aegir_adapters.demo.summary import DemoSummary, Recorded
    from aegir_adapters.sae import TopKSAE

HOOKED_LAYERS = 2
LATENTS = 512
ACTIVE_LATENTS = 16


def record_run(options: DemoOptions, run_dir: Path, *, stages: Stages) -> DemoSummary:
    """Go through all phases in `run_dir` and return what the run came to."""
    with hub_offline(), quiet_libraries(), one_torch_thread(), ExitStack() as page:
        if not options.headless:
            _serve(options, run_dir, stages, page)
        tokenizer = build_tokenizer()
        policy = build_policy(tokenizer, seed=options.seed)
        _fine_tune(policy, tokenizer, options, stages)
        rollouts = _collect(policy, tokenizer, options, stages)
        saes = _train_saes(rollouts.residuals, options, stages)
        for layer, sae in saes.items():
            save_sae(sae, run_dir / "sae" / f"layer-{layer}")
        _reinforce(policy, tokenizer, saes, run_dir, options, stages)
        summary = summarise(
            _read_back(run_dir, stages),
            seed=options.seed,
            reward_before=rollouts.mean_reward,
            phase_seconds=stages.seconds,
            run_dir=run_dir,
        )
        stages.reporter.show(summary)
        if options.keep_serving and not options.headless:
            stages.reporter.say("Still serving; Ctrl-C ends it")
            wait_for_interrupt()
    return summary


def _fine_tune(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    options: DemoOptions,
    stages: Stages,
) -> None:
    steps = options.recipe.fine_tune_steps
    with stages.stage("Fine-tune the policy", total=steps) as advance:
        fine_tune(
            policy,
            tokenizer,
            seed=options.seed,
            steps=steps,
            on_step=lambda step, loss: advance(step, f"loss {loss:.2f}"),
        )


def _collect(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    options: DemoOptions,
    stages: Stages,
) -> Rollouts:
    count = options.recipe.rollouts
    with stages.stage("Sample its rollouts", total=count) as advance:
        rollouts = collect_rollouts(
            policy,
            tokenizer,
            layers=default_layers_to_hook(policy.config.num_hidden_layers, HOOKED_LAYERS),
            seed=options.seed,
            count=count,
            on_rollouts=advance,
        )
        advance(count, f"reward {rollouts.mean_reward:.2f}")
    return rollouts


def _train_saes(
    residuals: dict[int, Tensor], options: DemoOptions, stages: Stages
) -> dict[int, TopKSAE]:
    return {layer: _train_sae(layer, x, options, stages) for layer, x in residuals.items()}


def _train_sae(layer: int, x: Tensor, options: DemoOptions, stages: Stages) -> TopKSAE:
    steps = options.recipe.sae_steps
    with stages.stage(f"Train the SAE of layer {layer}", total=steps) as advance:
        sae = train_topk(
            x,
            n_latents=LATENTS,
            k=ACTIVE_LATENTS,
            steps=steps,
            seed=options.seed,
            on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
        advance(steps, f"FVU {fidelity(sae, x).fvu:.3f}")
    return sae


def _serve(options: DemoOptions, run_dir: Path, stages: Stages, page: ExitStack) -> None:
    server = page.enter_context(serve_near(create_app(run_dir), port=options.port))
    if server.port != options.port:
        stages.reporter.say(f"Port {options.port} is in use, port {server.port} is not")
    stages.reporter.say(
        f"Watch it at {server.address} (there is nothing to see before GRPO starts)"
    )


def _reinforce(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    saes: dict[int, TopKSAE],
    run_dir: Path,
    options: DemoOptions,
    stages: Stages,
) -> None:
    with stages.stage("Train it by GRPO", total=options.steps) as advance:
        trainer = build_trainer(
            policy,
            tokenizer,
            output_dir=run_dir,
            steps=options.steps,
            seed=options.seed,
            on_step=lambda step, reward: advance(step, f"reward {reward:.2f}"),
        )
        observe(trainer, sae=saes)
        trainer.train()


def _read_back(run_dir: Path, stages: Stages) -> Recorded:
    with stages.stage("Read the log back", total=1):
        return replay(RunDirectory.at(run_dir), RecordedView()).state
