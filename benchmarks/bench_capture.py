"""What share of a training step does recording take?

Budget: under 8 % of the step of the demo run, with both layers hooked and K = 16. The rival is the
same step without a recording: one process, one trainer, steps with and without in pairs of random
order, so that whatever else the machine does and however the policy changes hits both alike. On a
step without, the hooks are removed and the trainer's methods only pass on. What the recorder's
thread has left to do is waited for between steps and told apart: on a machine with a core to spare
it costs the trainer nothing, at worst it takes its own processor time.

Then what reading 8,192 tokens with 65,536 latents takes, in chunks of several sizes, each
architecture in a process of its own.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
import trl
from transformers import TrainerCallback

from aegir_adapters.demo.options import Recipe
from aegir_adapters.demo.preparation import prepare
from aegir_adapters.sae import (
    GatedSAE,
    JumpReLUSAE,
    SparseAutoencoder,
    StandardSAE,
    TopKSAE,
    Weights,
    autoencoder,
)
from aegir_adapters.train import AssetPaths, Preset, Silent, load_preset
from aegir_adapters.train.functions import function_of
from aegir_adapters.train.libraries import quiet_libraries
from aegir_adapters.train.prompts import read_prompts
from aegir_adapters.train.training import build_trainer, load_policy, load_saes
from aegir_adapters.trainer import SidecarCallback, observe
from aegir_adapters.trainer.layers import decoder_layers

LAYERS, TOP_K = (0, 2), 16
BUDGET = 0.08
PAIRS = int(os.environ.get("PAIRS", "150"))
WARM_UP = 10
RESAMPLES = 2000
WIDE_TOKENS, WIDE_LATENTS, WIDE_WIDTH = 8192, 65_536, 64


class Step(msgspec.Struct, frozen=True):
    """One step: wall and processor seconds of the training thread, and what was left to write."""

    recorded: bool
    wall_s: float
    cpu_s: float
    left_s: float = 0.0


class Alternating(TrainerCallback):
    """Switches the recording between steps and times them; stands before it in the list."""

    def __init__(self, recording: SidecarCallback, *, seed: int = 0) -> None:
        self.steps: list[Step] = []
        self._recording = recording
        self._random = random.Random(seed)  # noqa: S311 - an order, no secret
        self._order: list[bool] = []
        self._attempt: Any = None
        self._began: tuple[float, float] | None = None
        self._on = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """End the step before, let the recorder finish, and switch."""
        now = time.perf_counter(), time.thread_time()
        self._close(now)
        if not self._order:
            self._order = self._random.sample([True, False], 2)
        self._switch(kwargs["model"], on=self._order.pop())
        self._began = time.perf_counter(), time.thread_time()

    def _close(self, now: tuple[float, float]) -> None:
        if self._began is None:
            return
        self._recording._recorder.flush(timeout_s=30)  # noqa: SLF001 - no waiting is public
        left_s = time.perf_counter() - now[0]
        wall, cpu = (end - begin for end, begin in zip(now, self._began, strict=True))
        self.steps.append(Step(self._on, wall, cpu, left_s if self._on else 0.0))

    def _switch(self, model: Any, *, on: bool) -> None:
        """Take the recording out of the trainer's way, or put it back; files stay open."""
        attempt: Any = self._attempt or self._recording._attempt  # noqa: SLF001 - as above
        self._attempt, self._on = attempt, on
        self._recording._attempt = attempt if on else None  # noqa: SLF001
        attempt._capture.unhook()  # noqa: SLF001
        if on:
            attempt._capture.hook(decoder_layers(model))  # noqa: SLF001


def demo(run_dir: Path) -> Preset:
    """Prepare the demo's policy and SAEs, and return what it trains."""
    preset, assets = load_preset("tiny"), AssetPaths(root=run_dir)
    settings = msgspec.structs.asdict(Recipe())
    prepare(assets, layers=LAYERS, seed=0, settings=settings, reporter=Silent())
    grpo = msgspec.structs.replace(
        preset.grpo, steps=WARM_UP + 2 * PAIRS, trainer={"save_strategy": "no"}
    )
    return msgspec.structs.replace(assets.placed(preset), grpo=grpo)


def alternate(run_dir: Path) -> list[Step]:
    """Train the demo's policy with and without a recording in turns."""
    preset = demo(run_dir)
    trainer = build_trainer(
        preset,
        policy=load_policy(preset.policy),
        prompts=read_prompts(Path(str(preset.prompts.path))),
        reward=function_of(str(preset.reward.function)),
        output_dir=run_dir,
    )
    callback = observe(trainer, sae=load_saes(str(preset.sae.path), LAYERS), top_k=TOP_K)
    trainer.remove_callback(callback)
    watch = Alternating(callback)
    trainer.add_callback(watch)
    trainer.add_callback(callback)
    trainer.train()
    if callback.statistics().errors:
        raise RuntimeError(callback.statistics().last_error)
    return watch.steps[WARM_UP:]


def share(steps: Sequence[Step], field: str) -> tuple[float, float, float, float]:
    """Return the mean extra share of a recorded step, its 95 % interval, and the median share.

    By pairs of neighbouring steps, whose differences are resampled.
    """
    pairs = [sorted(pair, key=lambda s: s.recorded) for pair in zip(steps[::2], steps[1::2])]  # noqa: B905 - the last may be alone
    extra = [getattr(on, field) - getattr(off, field) for off, on in pairs if on.recorded]
    plain = statistics.fmean(getattr(off, field) for off, _ in pairs)
    draws = random.Random(1)  # noqa: S311 - as above
    means = sorted(
        statistics.fmean(draws.choices(extra, k=len(extra))) / plain for _ in range(RESAMPLES)
    )
    low, high = means[RESAMPLES // 40], means[-RESAMPLES // 40]
    return statistics.fmean(extra) / plain, low, high, statistics.median(extra) / plain


def tell(steps: Sequence[Step]) -> bool:
    """Print what recording takes; return whether that is within the budget."""
    on, off = ([s for s in steps if s.recorded is recorded] for recorded in (True, False))
    print(f"{len(on)} recorded steps, {len(off)} without, in pairs of random order")
    for name, field in (("wall clock", "wall_s"), ("processor time", "cpu_s")):
        mean, low, high, median = share(steps, field)
        with_ms, without_ms = (
            1e3 * statistics.median(getattr(s, field) for s in part) for part in (on, off)
        )
        print(
            f"  {name:15} {without_ms:7.1f} ms without, {with_ms:7.1f} ms with;"
            f" extra: mean {mean:6.2%} (95 % {low:.2%} to {high:.2%}), median {median:6.2%}"
        )
    left = 1e3 * statistics.median(step.left_s for step in on)
    print(f"  the recorder's thread had {left:.1f} ms left to do behind a step (median)")
    # Processor time is what decides: of the wall clock, others on the machine take their share.
    mean, *_ = share(steps, "cpu_s")
    verdict = "within" if mean < BUDGET else "ABOVE"
    print(f"  {mean:.2%} of the step: {verdict} the budget of {BUDGET:.0%}")
    return mean < BUDGET


def peak_kib() -> int:
    """Return the most memory that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def wide(architecture: str, chunk_elements: int) -> None:
    """Print what reading many tokens with a wide SAE takes in this process."""
    autoencoder.CHUNK_ELEMENTS = chunk_elements
    draws = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        scale: float = WIDE_WIDTH**0.5
        return torch.randn(*shape, generator=draws) / scale

    d, m = WIDE_WIDTH, WIDE_LATENTS
    weights = Weights(noise(d, m), torch.full((m,), -2.5), noise(m, d), noise(d))
    makers: dict[str, Callable[[], SparseAutoencoder]] = {
        "topk": lambda: TopKSAE(weights, k=32),
        "standard": lambda: StandardSAE(weights),
        "jumprelu": lambda: JumpReLUSAE(weights, threshold=torch.full((m,), 0.5)),
        "gated": lambda: GatedSAE(weights, b_mag=noise(m), r_mag=noise(m)),
    }
    sae = makers[architecture]()
    x = noise(WIDE_TOKENS, d) * d**0.5
    sae.top(x[:8], k=TOP_K)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until now
    before = peak_kib()
    began = time.thread_time()
    top = sae.top(x, k=TOP_K)
    seconds = time.thread_time() - began
    extra = (peak_kib() - before) / 1024
    l0 = top.l0.float().mean()
    print(
        f"  {architecture:9} chunks of {chunk_elements * 4 >> 20:3} MiB: {seconds:6.2f} s of"
        f" processor time, {extra:5.0f} MiB extra at the peak, L0 {l0:.0f}"
    )


def main() -> None:
    """Print the comparison and the verdict."""
    torch.set_num_threads(1)
    if len(sys.argv) == 3:  # what a child is told
        wide(sys.argv[1], int(sys.argv[2]))
        return
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, trl {trl.__version__}, {os.cpu_count()} cores, load {load}"
    )
    with quiet_libraries(), tempfile.TemporaryDirectory() as directory:
        tell(alternate(Path(directory)))
    print(f"\n{WIDE_TOKENS:,} tokens, {WIDE_LATENTS:,} latents, d_model {WIDE_WIDTH}")
    for architecture in ("topk", "standard", "jumprelu", "gated"):
        for elements in (1 << 20, 1 << 22, 1 << 24):
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, architecture, str(elements)], check=True)


if __name__ == "__main__":
    main()
