"""What does a sweep of activation patching cost, beside one forward for each cell?

Rivals in this process, on the same weights (12 layers, width 256, one thread): one forward with one
hook for each cell, and TransformerLens batched over all positions of a layer. Both are timed on a
sample and extrapolated, which is fair: their cost is the same for every cell. CPU time is compared,
since what else the machine does then hits it least.

Budgets: 8x faster than one forward for each cell, 4x faster than TransformerLens, and token-layers
within a tenth of the floor ``(1 - 1/L) (1 + 1/n) / 4``. That floor is 1/4.3 of what a forward for
each cell takes: where forwards are bound by arithmetic, more than 4.3x is to be had only by cells
that need none, because prompts share a prefix or because hooks are one place.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import CellBatch, SweepCounts, SweepEnd
from aegir_adapters.patching.sources import RunSource
from aegir_adapters.patching.sweep import SweepSpec, sweep

LAYERS, WIDTH, INNER, HEADS, VOCABULARY = 12, 256, 768, 8, 8_192
ROUNDS = {40: 3, 128: 2}
"""How often everything is measured, by prompt length."""
ANSWER, FOIL = 17, 23
ONE_HOOK = ("resid_post",)
THREE_HOOKS = ("resid_pre", "resid_mid", "resid_post")
SAMPLED_CELLS, SAMPLED_LAYERS = 20, (0, 11)


class Ours(NamedTuple):
    """One sweep of ours.

    Attributes:
        cpu_s: CPU seconds of it all.
        first_s: wall seconds until the first computed cells.
        counts: the work.
    """

    cpu_s: float
    first_s: float
    counts: SweepCounts


def model_here() -> Any:
    """Return the model, with weights large enough for patches to matter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.06)
    model.train(False)
    return model


def model_there(module: Any) -> Any:
    """Return the same weights in TransformerLens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformer, HookedTransformerConfig  # noqa: PLC0415
        from transformer_lens.pretrained import weight_conversions  # noqa: PLC0415

        config = HookedTransformerConfig(
            n_layers=LAYERS,
            d_model=WIDTH,
            n_ctx=512,
            n_heads=HEADS,
            d_head=WIDTH // HEADS,
            d_mlp=INNER,
            d_vocab=VOCABULARY,
            act_fn="silu",
            normalization_type="RMS",
            eps=module.config.rms_norm_eps,
            positional_embedding_type="rotary",
            rotary_dim=WIDTH // HEADS,
            rotary_adjacent_pairs=False,
            gated_mlp=True,
            final_rms=True,
            n_key_value_heads=HEADS,
            original_architecture="LlamaForCausalLM",
            device="cpu",
        )
        theirs = HookedTransformer(config)
        converted = weight_conversions.convert_llama_weights(module, config)  # type: ignore[attr-defined]
        theirs.load_and_process_state_dict(
            converted,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
    return theirs


def cpu_s(action: Callable[[], object]) -> float:
    """Return the CPU seconds that something takes."""
    began = time.process_time()
    action()
    return time.process_time() - began


def prompts(length: int, *, shared: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a clean and a corrupt prompt whose first tokens are the same."""
    torch.manual_seed(length)
    both = torch.randint(0, VOCABULARY, (2, length))
    both[1, :shared] = both[0, :shared]
    return tuple(both[0].tolist()), tuple(both[1].tolist())


def ours(model: PatchableModel, length: int, hooks: Sequence[str], *, shared: int = 0) -> Ours:
    """Sweep every layer and position."""
    clean, corrupt = prompts(length, shared=shared)
    first_s = 0.0
    counts: SweepCounts | None = None
    began, wall = time.process_time(), time.monotonic()
    spec = SweepSpec(
        prompt_ids=corrupt,
        source=RunSource(run=capture(model, clean)),
        hooks=tuple(hooks),
        layers=tuple(range(LAYERS)),
        answer_ids=(ANSWER,),
        foil_ids=(FOIL,),
        metrics=("logit_diff",),
    )
    for item in sweep(model, spec):
        if isinstance(item, CellBatch) and not first_s and not item.cells[0].free:
            first_s = time.monotonic() - wall
        if isinstance(item, SweepEnd):
            counts = item.counts
    assert counts is not None  # noqa: S101 - a sweep ends with its counts
    return Ours(time.process_time() - began, first_s, counts)


@torch.no_grad()
def forward_per_cell(module: Any, length: int) -> float:
    """Return the CPU seconds of one cell."""
    _, corrupt = prompts(length)
    ids = torch.tensor([corrupt])
    row = torch.zeros(WIDTH)

    def patched(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, length // 2] = row
        return output

    def cells() -> None:
        for cell in range(SAMPLED_CELLS):
            handle = module.model.layers[cell % LAYERS].register_forward_hook(patched)
            module(ids, use_cache=False, logits_to_keep=1)
            handle.remove()

    module(ids)
    return cpu_s(cells) / SAMPLED_CELLS


@torch.no_grad()
def batched_in_lens(theirs: Any, length: int) -> float:
    """Return the CPU seconds of one layer, all its positions in one batch."""
    clean, corrupt = prompts(length)
    _, cache = theirs.run_with_cache(torch.tensor([clean]))
    batch = torch.tensor([corrupt]).repeat(length, 1)
    every = torch.arange(length)

    def layers() -> None:
        for layer in SAMPLED_LAYERS:

            def patched(output: torch.Tensor, hook: Any) -> torch.Tensor:
                del hook
                output[every, every] = cache["resid_post", layer][0]  # noqa: B023 - used at once
                return output

            theirs.run_with_hooks(batch, fwd_hooks=[(f"blocks.{layer}.hook_resid_post", patched)])

    return cpu_s(layers) / len(SAMPLED_LAYERS)


def verdict(what: str, value: float, budget: float, *, unit: str = "x", least: bool = True) -> None:
    """Print a figure beside its budget."""
    within = value >= budget if least else value <= budget
    bound = "at least" if least else "at most"
    print(
        f"  {'within' if within else 'MISSED':7} {what}: {value:.3g} {unit} ({bound} {budget:.3g})"
    )


def compare(model: PatchableModel, theirs: Any, length: int) -> None:
    """Print the figures of one prompt length."""
    cells = LAYERS * length
    kinds = {
        "one hook, no shared token": (ONE_HOOK, 0),
        "one hook, half the prompt shared": (ONE_HOOK, length // 2),
        "three hooks, no shared token": (THREE_HOOKS, 0),
        "three hooks, a quarter shared": (THREE_HOOKS, length // 4),
    }
    naive, lens = math.inf, math.inf
    runs: dict[str, Ours] = {}
    # In turns, and the best of each: what else the machine does only ever adds.
    for _ in range(ROUNDS[length]):
        naive = min(naive, forward_per_cell(model.module, length) * cells)
        lens = min(lens, batched_in_lens(theirs, length) * LAYERS)
        for what, (hooks, shared) in kinds.items():
            run = ours(model, length, hooks, shared=shared)
            runs[what] = min(run, runs.get(what, run), key=lambda one: one.cpu_s)
    print(
        f"\nn = {length}, {cells} cells for each hook, CPU seconds, load {os.getloadavg()[0]:.1f}"
    )
    print(f"  one forward for each cell: {naive:.1f}, TransformerLens batched: {lens:.1f}")
    print(f"  {'':34}{'CPU s':>8}{'x naive':>9}{'x TL':>7}{'first s':>9}{'share':>8}")
    for what, run in runs.items():
        grids = len(kinds[what][0])
        share = run.counts.token_layers / run.counts.token_layers_naive
        print(
            f"  {what:34}{run.cpu_s:8.2f}{grids * naive / run.cpu_s:9.1f}"
            f"{grids * lens / run.cpu_s:7.1f}{run.first_s:9.2f}{share:8.3f}"
        )
    plain = runs["one hook, no shared token"]
    verdict("against one forward for each cell", naive / plain.cpu_s, 8.0)
    verdict("against TransformerLens", lens / plain.cpu_s, 4.0)
    floor = (1 - 1 / LAYERS) * (1 + 1 / length) / 4
    counts = plain.counts
    work = (counts.token_layers + counts.token_layers_riders) / counts.token_layers_naive
    verdict("share of token-layers, riders included", work, 1.1 * floor, unit="", least=False)
    print(f"          (floor {floor:.3f}: at most {1 / floor:.1f}x where arithmetic is the bound)")


def main() -> None:
    """Answer the question."""
    torch.set_num_threads(1)
    versions = ("torch", "transformers", "transformer-lens")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread")
    print(
        f"Python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in versions)
    )
    module = model_here()
    model = PatchableModel(module)
    print(f"engine: {model.engine}, {model.engine_reason}")
    theirs = model_there(module)
    ids = torch.tensor([prompts(24)[0]])
    with torch.no_grad():
        apart = (theirs(ids) - module(ids).logits).abs().max()
    print(f"TransformerLens on the same weights: logits apart by {apart:.1e}")
    for length in ROUNDS:
        compare(model, theirs, length)


if __name__ == "__main__":
    main()
