"""What does a sweep of activation patching cost, beside one forward for each cell?

Rivals in this process, on the same weights (12 layers, width 256): one forward with one hook for
each cell, and TransformerLens batched over all positions of a layer. Both are timed on a sample and
extrapolated, which is fair: their cost is the same for every cell. With one thread CPU time is
compared, since what else the machine does then hits it least; with torch's own number of threads,
the clock on the wall.

Budgets, with one thread: 8x faster than one forward for each cell, 4x faster than TransformerLens,
and token-layers within a tenth of the floor ``(1 - 1/L) (1 + 1/n) / 4``. The forward that counts is
the strict one, which makes the logits of the last row only; ``model(ids)``, as most people write
it, makes all of them, and is told beside it.

The floor is 1/4.3 of what a forward for each cell takes, so 4.3x is what leaving out arithmetic
gains. More is to be had by packing rows, which forwards over a short prompt are bad at, by prompts
that share a prefix, and by hooks that are one place. At 128 tokens a forward is nearly as good at
its matrices as a packed walk, and 8x is out of reach with the model's own modules: its layers and
its attention alone, run on nothing but the rows of the floor in blocks of the best size, took
1/6.7 of what the forwards took, with nothing around them.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import CellBatch, SweepCounts, SweepEnd
from aegir_adapters.patching.sources import RunSource
from aegir_adapters.patching.sweep import SweepSpec, sweep

LAYERS, WIDTH, INNER, HEADS, VOCABULARY = 12, 256, 768, 8, 8_192
ROUNDS = {40: 5, 128: 2}
"""How often everything is measured, by prompt length."""
ANSWER, FOIL = 17, 23
ONE_HOOK = ("resid_post",)
THREE_HOOKS = ("resid_pre", "resid_mid", "resid_post")
PLAIN = "one hook, no shared token"
SAMPLED_CELLS, SAMPLED_LAYERS = 20, (0, 11)


class Ours(NamedTuple):
    """One sweep of ours.

    Attributes:
        took_s: seconds of it all, by `now_s`.
        first_s: wall seconds until the first computed cells.
        counts: the work.
    """

    took_s: float
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


def now_s() -> float:
    """Return CPU seconds with one thread, and with several what the clock on the wall says."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(action: Callable[[], object]) -> float:
    """Return what something takes."""
    began = now_s()
    action()
    return now_s() - began


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
    began, wall = now_s(), time.monotonic()
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
    return Ours(now_s() - began, first_s, counts)


@torch.no_grad()
def forward_per_cell(module: Any, length: int, *, logits: Literal["last", "all"] = "last") -> float:
    """Return the seconds of one cell, with the logits of the last row or of all rows."""
    _, corrupt = prompts(length)
    ids = torch.tensor([corrupt])
    row = torch.zeros(WIDTH)
    kept = 1 if logits == "last" else 0

    def patched(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, length // 2] = row
        return output

    def cells() -> None:
        for cell in range(SAMPLED_CELLS):
            handle = module.model.layers[cell % LAYERS].register_forward_hook(patched)
            module(ids, use_cache=False, logits_to_keep=kept)
            handle.remove()

    module(ids)
    return seconds(cells) / SAMPLED_CELLS


@torch.no_grad()
def batched_in_lens(theirs: Any, length: int) -> float:
    """Return the seconds of one layer, all its positions in one batch."""
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

    return seconds(layers) / len(SAMPLED_LAYERS)


def verdict(what: str, value: float, budget: float, *, unit: str = "x", least: bool = True) -> None:
    """Print a figure beside its budget."""
    within = value >= budget if least else value <= budget
    bound = "at least" if least else "at most"
    print(
        f"  {'within' if within else 'MISSED':7} {what}: {value:.3g} {unit} ({bound} {budget:.3g})"
    )


class Measured(NamedTuple):
    """The figures of one prompt length, the best of each.

    Attributes:
        last: seconds of one forward for each cell of one hook, with the last row's logits only.
        every: likewise, with the logits of all rows.
        lens: seconds of TransformerLens.
        ours: our sweeps, by what is swept.
    """

    last: float
    every: float
    lens: float
    ours: dict[str, Ours]


def kinds(length: int) -> dict[str, tuple[tuple[str, ...], int]]:
    """Return what is swept: hooks, and how many tokens the prompts share."""
    return {
        PLAIN: (ONE_HOOK, 0),
        "one hook, half the prompt shared": (ONE_HOOK, length // 2),
        "three hooks, no shared token": (THREE_HOOKS, 0),
        "three hooks, a quarter shared": (THREE_HOOKS, length // 4),
    }


def measured(model: PatchableModel, theirs: Any, length: int) -> Measured:
    """Measure everything in turns and keep the best: what else the machine does only ever adds."""
    cells = LAYERS * length
    last, every, lens = math.inf, math.inf, math.inf
    found: dict[str, Ours] = {}
    for _ in range(ROUNDS[length]):
        last = min(last, forward_per_cell(model.module, length) * cells)
        every = min(every, forward_per_cell(model.module, length, logits="all") * cells)
        lens = min(lens, batched_in_lens(theirs, length) * LAYERS)
        for what, (hooks, shared) in kinds(length).items():
            run = ours(model, length, hooks, shared=shared)
            found[what] = min(run, found.get(what, run), key=lambda one: one.took_s)
    return Measured(last, every, lens, found)


def compare(model: PatchableModel, theirs: Any, length: int) -> None:
    """Print the figures of one prompt length."""
    threads, found = torch.get_num_threads(), measured(model, theirs, length)
    clock = "CPU seconds, one thread" if threads == 1 else f"seconds, {threads} threads (default)"
    print(
        f"\nn = {length}, {LAYERS * length} cells for each hook, {clock}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  one forward for each cell: {found.last:.1f} with the last row's logits (last), "
        f"{found.every:.1f} with all, as model(ids) (all); TransformerLens batched: "
        f"{found.lens:.1f} (TL)"
    )
    print(f"  {'':34}{'s':>8}{'x last':>8}{'x all':>8}{'x TL':>7}{'first s':>9}{'share':>8}")
    for what, run in found.ours.items():
        grids = len(kinds(length)[what][0])
        share = run.counts.token_layers / run.counts.token_layers_naive
        ratios = [grids * rival / run.took_s for rival in (found.last, found.every, found.lens)]
        print(
            f"  {what:34}{run.took_s:8.2f}{ratios[0]:8.1f}{ratios[1]:8.1f}{ratios[2]:7.1f}"
            f"{run.first_s:9.2f}{share:8.3f}"
        )
    if threads == 1:
        judge(found, length)


def judge(found: Measured, length: int) -> None:
    """Print what there are budgets for."""
    plain = found.ours[PLAIN]
    verdict("against one forward for each cell, strict", found.last / plain.took_s, 8.0)
    verdict("against TransformerLens", found.lens / plain.took_s, 4.0)
    floor = (1 - 1 / LAYERS) * (1 + 1 / length) / 4
    counts = plain.counts
    work = (counts.token_layers + counts.token_layers_riders) / counts.token_layers_naive
    verdict("share of token-layers, riders included", work, 1.1 * floor, unit="", least=False)
    print(f"          (floor {floor:.3f}: {1 / floor:.1f}x from leaving out arithmetic alone)")


def main() -> None:
    """Answer the question."""
    default = torch.get_num_threads()
    versions = ("torch", "transformers", "transformer-lens")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
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
    # With OMP_NUM_THREADS=1 torch's own number is one, and there is nothing to add.
    for threads in sorted({1, default}):
        torch.set_num_threads(threads)
        for length in ROUNDS:
            compare(model, theirs, length)


if __name__ == "__main__":
    main()
