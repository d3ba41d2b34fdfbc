from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.patching.decoders import (
    ALIGNMENT,
    ANSWER,
    CLEAN,
    CORRUPT,
    FOIL,
    LAYERS,
    LONGER,
    decoder,
)
from adapters.patching.hooked import activations, blocks, changed_input, changed_output
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import Engine, SweepEnd
from aegir_adapters.patching.sources import (
    FeatureSource,
    MeanSource,
    RunSource,
    Source,
    VectorSource,
    ZeroSource,
)
from aegir_adapters.patching.sweep import sweep
from aegir_stream.errors import OptionError

SLOPED: tuple[MetricName, ...] = (
    "logprob",
    "logit_diff",
    "recovered",
    "recovered_logit_diff",
    "kl",
)
RESIDUAL = ("resid_pre", "resid_post", "post_block")
BRANCHES = ("attn_out", "mlp_out")
ALL = (*RESIDUAL, *BRANCHES, "resid_mid", "z", "z.1", "pre_attn", "post_attn")

Formula = Callable[[Tensor], Tensor]


@cache
def model_of(family: str) -> PatchableModel:
    """Return the same model each time; a sweep leaves it as it was."""
    return PatchableModel(decoder(family))


def preview(model: PatchableModel, source: Source, **options: Any) -> Swept:
    """Return the estimates of a sweep."""
    return Swept(model, spec_of(source, method="attribution", **options))


def formulas(clean: Tensor, corrupt: Tensor) -> dict[str, Formula]:
    """Return each metric as a function of the last row's logits, written out."""
    there = clean.log_softmax(-1)

    def logprob(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[ANSWER]

    def logit_diff(logits: Tensor) -> Tensor:
        return logits[ANSWER] - logits[FOIL]

    def share_of(raw: Formula) -> Formula:
        return lambda logits: (raw(logits) - raw(corrupt)) / (raw(clean) - raw(corrupt))

    return {
        "logprob": logprob,
        "logit_diff": logit_diff,
        "recovered": share_of(logprob),
        "recovered_logit_diff": share_of(logit_diff),
        "kl": lambda logits: (there.exp() * (there - logits.log_softmax(-1))).sum(),
    }


def slopes(module: Any, metric: Formula) -> dict[str, list[Tensor]]:
    """Return a metric's gradient by hook and layer, by autograd and hooks on modules named here."""
    seen: dict[str, list[Tensor]] = {
        name: [] for name in ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")
    }

    def keep(into: list[Tensor]) -> Callable[[Tensor], Tensor]:
        def edit(tensor: Tensor) -> Tensor:
            into.append(tensor)
            return tensor

        return edit

    with ExitStack() as stack:
        for block in blocks(module):
            places = (
                (changed_input, block.layer, "resid_pre"),
                (changed_output, block.layer, "resid_post"),
                (changed_output, block.attention, "attn_out"),
                (changed_output, block.mlp, "mlp_out"),
                (changed_input, block.projection, "z"),
            )
            for place, part, name in places:
                if part is not None:
                    stack.enter_context(place(part, keep(seen[name])))
        value = metric(module(torch.tensor([list(CORRUPT)])).logits[0, -1])
    flat = [tensor for name in seen for tensor in seen[name]]
    found = iter(torch.autograd.grad(value, flat))
    return {name: [next(found)[0] for _ in seen[name]] for name in seen}


LANDS = {
    "resid_mid": "attn_out",
    "pre_attn": "attn_out",
    "post_attn": "mlp_out",
    "post_block": "resid_post",
    "z.1": "z",
}
READS = {"pre_attn": "resid_pre", "post_attn": "resid_mid", "post_block": "resid_post", "z.1": "z"}
"""Where a hook acts, and whose change it makes there, if not at the place of its own name."""


@pytest.mark.parametrize("prompts", ["equal", "unequal"])
@pytest.mark.parametrize(
    ("family", "engine", "hooks"),
    [
        ("gpt2", "staircase", ALL),
        ("gemma2", "staircase", ALL),
        ("qwen3", "forwards", ALL),
        ("gpt_neox", "staircase", (*RESIDUAL, *BRANCHES, "z", "z.1")),
        ("mamba", "forwards", (*RESIDUAL, "attn_out")),
    ],
)
def test_an_estimate_is_the_change_times_the_gradient(
    family: str, engine: Engine, hooks: tuple[str, ...], prompts: str
) -> None:
    """Each cell equals a gradient of the metric's formula, taken by autograd and plain hooks."""
    module = decoder(family)
    model = PatchableModel(module)
    model.engine = engine
    ids, alignment = (CLEAN, None) if prompts == "equal" else (LONGER, ALIGNMENT)

    run = RunSource(run=capture(model, ids), alignment=alignment)
    swept = preview(model, run, hooks=hooks, metrics=SLOPED)

    assert swept.begin.method == "attribution"
    source, clean = activations(module, ids)
    before, corrupt = activations(module, CORRUPT)
    largest = 0.0
    for number, (name, formula) in enumerate(formulas(clean[-1], corrupt[-1]).items()):
        slope = slopes(module, formula)
        still = float(formula(corrupt[-1]))
        for (_, hook, layer, position), value in swept.values(number).items():
            site, other = (
                READS.get(hook, hook),
                position if alignment is None else alignment[position],
            )
            change = source[site][layer][other] - before[site][layer][position]
            moved = change * slope[LANDS.get(hook, hook)][layer][position]
            if hook == "z.1":
                moved = moved.reshape(module.config.num_attention_heads, -1)[1]
            by_hand = float(moved.sum())
            assert value == pytest.approx(still + by_hand, abs=1e-4), (name, hook, layer, position)
            largest = max(largest, abs(by_hand))
    assert largest > 0.1, "a model in which no patch does anything shows nothing"


@cache
def exact_model_of(family: str) -> PatchableModel:
    """Return a model of double precision."""
    return PatchableModel(decoder(family).double())


@settings(max_examples=12)
@given(
    st.sampled_from(["gpt2", "gemma2", "phi"]),
    st.integers(1, 8).flatmap(
        lambda length: st.tuples(
            *[st.lists(st.integers(3, 100), min_size=length, max_size=length)] * 2
        )
    ),
)
def test_a_small_patch_does_what_its_estimate_says(
    family: str, pair: tuple[list[int], list[int]]
) -> None:
    """In the limit of small alpha the estimate is exact, with its sign, for every metric."""
    model, alpha = exact_model_of(family), 1e-3
    source = RunSource(run=capture(model, pair[0]))
    options: dict[str, Any] = {
        "prompt_ids": tuple(pair[1]),
        "hooks": ("resid_pre", "mlp_out", "z"),
        "metrics": ("logprob", "logit_diff", "kl"),
    }

    estimated = preview(model, source, alpha=alpha, **options)
    # Towards the source and away from it: the curvature cancels.
    there, away = (Swept(model, spec_of(source, alpha=a, **options)) for a in (alpha, -alpha))

    for number, still in enumerate(estimated.begin.baselines[0].corrupt.values()):
        assert still is not None
        for cell, value in estimated.values(number).items():
            effect = (there.values(number)[cell] - away.values(number)[cell]) / 2
            # Metrics are float32, good to about 1e-6.
            assert value - still == pytest.approx(effect, rel=0.01, abs=5e-6)


@settings(max_examples=6)
@given(st.floats(-1.0, 1.5))
def test_estimates_are_linear_in_alpha(alpha: float) -> None:
    """Half a patch has half the estimated effect."""
    model = model_of("llama")
    source = RunSource(run=capture(model, CLEAN))
    whole = preview(model, source, hooks=("resid_post", "attn_out"))

    part = preview(model, source, hooks=("resid_post", "attn_out"), alpha=alpha)

    still = whole.begin.baselines[0].corrupt["logit_diff"]
    assert still is not None
    for cell, value in part.values().items():
        effect = alpha * (whole.values()[cell] - still)
        assert value - still == pytest.approx(effect, abs=1e-4)


class Dictionary:
    """A small SAE with tied weights."""

    def __init__(self) -> None:
        self.weights = torch.randn(32, 8, generator=torch.Generator().manual_seed(3))

    def encode(self, x: Tensor, /) -> Tensor:
        """Return codes."""
        return (x @ self.weights + 0.5).relu()

    def decode(self, latents: Tensor, x: Tensor, /) -> Tensor:
        """Return reconstructions."""
        del x
        return latents @ self.weights.T


@pytest.mark.parametrize("kind", ["zero", "mean", "vector", "ablated latent", "replaced latent"])
def test_every_source_can_be_previewed(kind: str) -> None:
    """Whatever takes an activation's place, the estimate is its difference times the gradient."""
    module = decoder("qwen2")
    model = PatchableModel(module)
    clean, given = capture(model, CLEAN), torch.randn(LAYERS, 32)
    sources: dict[str, Source] = {
        "zero": ZeroSource(),
        "mean": MeanSource(runs=(clean,)),
        "vector": VectorSource(vectors={("resid_post", k): given[k] for k in range(LAYERS)}),
        "ablated latent": FeatureSource(sae=Dictionary(), latent=5),
        "replaced latent": FeatureSource(sae=Dictionary(), latent=5, run=RunSource(run=clean)),
    }
    source = sources[kind]

    swept = preview(model, source)

    before, corrupt = activations(module, CORRUPT)
    formula = formulas(corrupt[-1], corrupt[-1])["logit_diff"]
    slope = slopes(module, formula)["resid_post"]
    hook = model.hook("resid_post")
    moved = 0
    for (_, _, layer, position), value in swept.values().items():
        current = before["resid_post"][layer][position][None]
        change = source.rows(hook, layer, [position], current) - current
        by_hand = float((change * slope[layer][position]).sum())
        assert value == pytest.approx(float(formula(corrupt[-1])) + by_hand, abs=1e-4)
        moved += by_hand != 0
    assert moved > LAYERS


@pytest.mark.parametrize(
    ("answer", "foil"), [((17, 3, 44), (23, 8)), ((17, 3), (17, 8)), ((17, 3), (17, 3))]
)
def test_forced_answers_are_previewed_in_both_their_sequences(
    answer: tuple[int, ...], foil: tuple[int, ...]
) -> None:
    """A patch acts on the answer's sequence and the foil's, even where these are the same."""
    model = model_of("llama")
    source = RunSource(run=capture(model, CLEAN))
    options: dict[str, Any] = {
        "answer_ids": answer,
        "foil_ids": foil,
        "metrics": ("logit_diff", "logprob"),
        "alpha": 1e-3,
    }

    estimated, exact = preview(model, source, **options), Swept(model, spec_of(source, **options))

    for number in range(2):
        assert estimated.values(number) == pytest.approx(exact.values(number), abs=2e-5)
    # Not even where the answer is its own foil: nothing was computed that could be noise.
    assert not any(cell.below_noise for cell in estimated.cells if cell.estimated)


def test_a_group_of_positions_has_the_sum_of_its_estimates() -> None:
    """To first order, rows that are patched together do not know of each other."""
    model = model_of("gpt2")
    source = RunSource(run=capture(model, CLEAN))

    swept = preview(model, source, hooks=("resid_post", "z.2"), positions=((5, 2), 2, 5))

    still = swept.begin.baselines[0].corrupt["logit_diff"]
    assert still is not None
    values = swept.values()
    for hook in ("resid_post", "z.2"):
        for layer in range(LAYERS - 1):
            both = values[0, hook, layer, (5, 2)] - still
            alone = sum(values[0, hook, layer, position] - still for position in (2, 5))
            assert both == pytest.approx(alone, abs=1e-6)


def test_pairs_that_are_previewed_together_get_what_each_gets_alone() -> None:
    """Pairs of one length share a backward, and no gradient of one gets into another's."""
    model = model_of("qwen3")
    short = RunSource(run=capture(model, CLEAN[:-1]))
    options: dict[str, Any] = {
        "method": "attribution",
        "hooks": ("resid_pre", "attn_out"),
        "metrics": ("logprob", "kl"),
    }
    pairs = [
        spec_of(RunSource(run=capture(model, CLEAN)), **options),
        spec_of(
            RunSource(run=capture(model, CORRUPT)), prompt_ids=CLEAN, answer_ids=(50,), **options
        ),
        spec_of(short, prompt_ids=CORRUPT[:-1], answer_ids=(3, 9), foil_ids=(4,), **options),
    ]

    together = Swept(model, pairs)

    for number in range(2):
        for pair, spec in enumerate(pairs):
            own = {(0, *c[1:]): v for c, v in together.values(number).items() if c[0] == pair}
            assert own == pytest.approx(Swept(model, spec).values(number), abs=1e-5)


@pytest.mark.parametrize("order", ["importance", "position"])
def test_a_preview_is_one_batch_and_computes_nothing(order: str) -> None:
    """Free cells are exact and first; the others say that they are estimated."""
    model = model_of("llama")
    source = RunSource(run=capture(model, CLEAN))
    options: dict[str, Any] = {"hooks": ("resid_pre", "resid_post"), "chunk_bytes": 1}

    swept = preview(model, source, order=order, metrics=("logit_diff", "logprob"), **options)

    exact = Swept(model, spec_of(source, **options))
    free, estimated = swept.batches
    assert {cell.estimated for cell in free.cells} == {False}
    assert {cell.estimated for cell in estimated.cells} == {True}
    assert {cell.below_noise for cell in estimated.cells} == {False}
    assert swept.values().keys() == exact.values().keys()
    still = swept.begin.baselines[0].corrupt["logit_diff"]
    effects = [abs(cell.values[0] - still) for cell in estimated.cells]  # type: ignore[operator]
    assert (effects == sorted(effects, reverse=True)) == (order == "importance")
    assert estimated.noise_floor == swept.end.noise_floor == {}
    assert swept.end.rank_correlation is None

    counts, there = swept.end.counts, exact.end.counts
    assert counts == swept.begin.counts
    assert (counts.computed, counts.token_layers, counts.token_layers_riders) == (0, 0, 0)
    assert counts.estimated == there.computed
    assert (counts.total, counts.free, counts.deduplicated, counts.token_layers_naive) == (
        there.total,
        there.free,
        there.deduplicated,
        there.token_layers_naive,
    )
    # Both prompts, a forward with gradients, and a backward for each of two metrics.
    assert counts.token_layers_baselines == (2 + 1 + 2 * 2) * LAYERS * len(CORRUPT)


@pytest.mark.parametrize(
    ("metrics", "ordered_by"),
    [(("rank", "kl"), "logprob"), (("kl",), "logprob"), (("rank", "logit_diff"), "logit_diff")],
)
def test_exact_cells_are_ordered_by_a_metric_that_has_a_gradient(
    metrics: tuple[MetricName, ...], ordered_by: MetricName
) -> None:
    """Neither by ranks, which step, nor by a distance from where it is least."""
    model = model_of("llama")
    chunk_bytes = 1 << 17

    swept = Swept(model, spec_of(ZeroSource(), metrics=metrics, chunk_bytes=chunk_bytes))

    other = Swept(model, spec_of(ZeroSource(), metrics=(ordered_by,), chunk_bytes=chunk_bytes))
    assert [(c.layer, c.position) for c in swept.cells] == [
        (c.layer, c.position) for c in other.cells
    ]
    assert len({c.position for c in swept.cells if not c.free}) > 1


def test_one_place_has_one_estimate() -> None:
    """What leaves a layer enters the next, for gradients as for patches."""
    swept = preview(
        model_of("gemma2"), ZeroSource(), hooks=("resid_pre", "resid_post"), metrics=("logprob",)
    )

    values = swept.values()
    for layer in range(LAYERS - 1):
        for position in range(len(CORRUPT)):
            left = values[0, "resid_post", layer, position]
            assert values[0, "resid_pre", layer + 1, position] == left


def test_where_everything_is_free_nothing_is_estimated() -> None:
    """Without anything to estimate there is no backward to count."""
    model = model_of("llama")

    swept = preview(model, RunSource(run=capture(model, CORRUPT)), metrics=("logprob",))

    assert all(cell.free and not cell.estimated for cell in swept.cells)
    assert swept.end.counts.token_layers_baselines == 2 * LAYERS * len(CORRUPT)


def test_an_estimate_that_is_not_finite_fails_alone() -> None:
    """One broken row has no value and an error; the others have theirs."""
    model = model_of("llama")
    run = capture(model, CLEAN)
    run.activations["resid_post"][1, 5] = math.nan

    swept = preview(model, RunSource(run=run))

    failed = [cell for cell in swept.cells if cell.error]
    assert [(cell.layer, cell.position, cell.values) for cell in failed] == [(1, 5, (None,))]
    assert swept.end.failed == 1
    effects = [cell.values[0] for cell in swept.batches[1].cells]
    assert effects[-1] is None


def state_of(module: Any) -> dict[str, Any]:
    """Return what must not change: gradients, modes, flags, hooks, configuration, randomness."""
    parameters = list(module.parameters())
    return {
        "grads": [None if p.grad is None else p.grad.clone() for p in parameters],
        "identities": [id(p.grad) for p in parameters],
        "weights": [p.detach().clone() for p in parameters],
        "flags": [p.requires_grad for p in parameters],
        "modes": [m.training for m in module.modules()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in module.modules()
        ],
        "attention": module.config._attn_implementation,
        "random": torch.get_rng_state(),
        "enabled": torch.is_grad_enabled(),
    }


def same(a: Any, b: Any) -> bool:
    """Return whether two states are equal."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("engine", ["staircase", "forwards"])
def test_a_preview_leaves_the_model_as_it_was(engine: Engine, *, frozen: bool) -> None:
    """In the midst of training: no parameter's gradient is touched, and no mode or hook stays."""
    module = decoder("gpt2")
    model = PatchableModel(module)
    model.engine = engine
    module.train().requires_grad_(not frozen)
    module.transformer.h[1].eval()
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.randn_like(parameter) if number % 2 else None
    before = state_of(module)

    swept = preview(
        model, RunSource(run=capture(model, CLEAN)), hooks=ALL, metrics=("logprob", "kl")
    )

    assert swept.end.counts.estimated > 0
    assert same(state_of(module), before)


@contextmanager
def failing(module: Any, after: int) -> Iterator[list[int]]:
    """Make the last layer fail after so many calls; count them."""
    calls = [0]

    def fail(*_: Any) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise MemoryError("none left")

    handle = module.model.layers[-1].register_forward_pre_hook(fail)
    yield calls
    handle.remove()


def test_a_preview_that_fails_leaves_nothing_behind() -> None:
    """Wherever the model gives up, it is as it was, and nobody holds the source's activations."""
    module = decoder("llama").train()
    model = PatchableModel(module)
    run = capture(model, CLEAN)
    held = weakref.ref(run.activations["resid_post"])
    with failing(module, after=100) as calls:
        expected = preview(model, RunSource(run=run)).values()
    # Of both prompts a forward and their logits, and again with gradients.
    assert calls[0] >= 4

    for after in range(calls[0]):
        with failing(module, after):
            before = state_of(module)
            with pytest.raises(MemoryError):
                preview(model, RunSource(run=run))
            assert same(state_of(module), before)

    assert preview(model, RunSource(run=run)).values() == expected
    del run
    assert held() is None


def test_a_preview_that_is_left_lets_its_graph_go() -> None:
    """Between two items there is no graph, and after the generator's end no trace."""
    model = model_of("llama")
    run = capture(model, CLEAN)
    held = weakref.ref(run.activations["resid_post"])
    items = sweep(model, spec_of(RunSource(run=run), method="attribution"))
    graphs: list[weakref.ref[Tensor]] = []

    def watch(_: Any, __: Any, output: Tensor) -> None:
        if output.grad_fn is not None:
            graphs.append(weakref.ref(output))

    norm: Any = model.module.get_submodule("model.norm")
    handle = norm.register_forward_hook(watch)
    next(items)
    handle.remove()

    assert graphs
    assert not any(graph() is not None for graph in graphs)
    items.close()
    del run, items
    assert held() is None


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {"metrics": ("logprob", "rank")}, r"some of logprob, logit_diff, .*, got rank"),
        (ZeroSource(), {"metrics": ("kl",)}, "some of logprob, .*, got kl - it has no gradient"),
        (None, {"method": "gradient"}, "Expected `method` to be one of exact, attribution, got"),
    ],
)
def test_what_has_no_gradient_is_refused_by_the_call(
    source: Source | None, options: dict[str, Any], message: str
) -> None:
    """Nothing is computed first, and the message names what can be previewed."""
    model = model_of("llama")
    own = source or RunSource(run=capture(model, CLEAN))

    with pytest.raises(OptionError, match=message):
        sweep(model, spec_of(own, **{"method": "attribution", **options}))


class Opaque(torch.autograd.Function):
    """A kernel that nobody wrote a backward for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return a copy."""
        del ctx
        return x.clone()


def cut_off(module: Any) -> Any:
    """Let no gradient out of the second layer."""
    return module.model.layers[1].register_forward_hook(lambda _, __, out: out.detach())


def opaque(module: Any) -> Any:
    """Put a kernel without a backward behind the second layer."""
    copied: Callable[[Tensor], Tensor] = Opaque.apply
    return module.model.layers[1].register_forward_hook(lambda _, __, out: copied(out))


def without_a_trace(module: Any) -> Any:
    """Let no gradient into the final norm, nor to its weights or those of the head."""
    module.requires_grad_(requires_grad=False)
    return module.model.norm.register_forward_hook(lambda _, __, out: out.detach())


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (cut_off, "resid_pre of layer 2 is cut off"),
        (opaque, "You must implement either the backward"),
        (without_a_trace, "its forward leaves no trace"),
    ],
)
def test_a_model_without_a_gradient_is_refused_with_the_reason(
    break_it: Callable[[Any], Any], reason: str
) -> None:
    """There is no estimate where none can be made; exact cells come all the same."""
    module = decoder("llama")
    model = PatchableModel(module)
    source = RunSource(run=capture(model, CLEAN))
    expected = Swept(model, spec_of(source)).values()
    handle = break_it(module)

    with pytest.raises(OptionError, match=f"`method` to be exact for `LlamaForCausalLM`.*{reason}"):
        preview(model, source)

    swept = Swept(model, spec_of(source))
    assert swept.values() == pytest.approx(expected, abs=1e-5)
    assert swept.end.rank_correlation is None
    handle.remove()


def test_weights_made_in_inference_mode_are_refused_with_the_reason() -> None:
    """Autograd takes none of them."""
    with torch.inference_mode():
        module = decoder("llama")
    model = PatchableModel(module)

    with pytest.raises(OptionError, match="its weights were made in inference mode"):
        preview(model, ZeroSource())
    assert isinstance(list(sweep(model, spec_of(ZeroSource())))[-1], SweepEnd)
