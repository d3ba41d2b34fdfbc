from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.patching.decoders import ALIGNMENT, CLEAN, CORRUPT, LAYERS, LONGER, decoder
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.sources import RunSource

FAMILIES = ("gpt2", "qwen3", "gemma2")
EVERY = tuple(range(len(CORRUPT)))

tokens = st.integers(3, 100)
prompts = st.integers(1, 9).flatmap(
    lambda length: st.tuples(*[st.lists(tokens, min_size=length, max_size=length)] * 2)
)
families = st.sampled_from(FAMILIES)
few = settings(max_examples=12)


@cache
def model_of(family: str) -> PatchableModel:
    """Return the same model each time; a sweep leaves it as it was."""
    return PatchableModel(decoder(family))


@few
@given(families, prompts)
def test_patching_every_differing_embedding_gives_the_clean_run(
    family: str, pair: tuple[list[int], list[int]]
) -> None:
    """A run is determined by what enters its first layer."""
    clean, corrupt = pair
    model = model_of(family)
    differing = tuple(p for p, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    spec = spec_of(
        RunSource(run=capture(model, clean)),
        prompt_ids=tuple(corrupt),
        hooks=("resid_pre",),
        layers=(0,),
        positions=(differing or tuple(range(len(clean))),),
        metrics=("logprob", "kl"),
    )

    swept = Swept(model, spec)

    [cell] = swept.cells
    baselines = swept.begin.baselines[0]
    assert baselines.clean is not None
    assert cell.values == pytest.approx(tuple(baselines.clean.values()), abs=1e-4)


@few
@given(families, prompts, st.floats(-0.5, 1.5))
def test_what_leaves_a_layer_enters_the_next(
    family: str, pair: tuple[list[int], list[int]], alpha: float
) -> None:
    """`resid_post` of a layer and `resid_pre` of the next are one place, computed once."""
    model = model_of(family)
    spec = spec_of(
        RunSource(run=capture(model, pair[0])),
        prompt_ids=tuple(pair[1]),
        hooks=("resid_post", "resid_pre"),
        alpha=alpha,
    )

    swept = Swept(model, spec)

    values = swept.values()
    for position in range(len(pair[0])):
        for layer in range(LAYERS - 1):
            after, before = (
                (0, "resid_post", layer, position),
                (0, "resid_pre", layer + 1, position),
            )
            assert values[after] == values[before]


@few
@given(families, prompts, st.sampled_from(["resid_pre", "resid_mid", "attn_out", "mlp_out", "z"]))
def test_cells_before_the_first_differing_token_change_nothing(
    family: str, pair: tuple[list[int], list[int]], hook: str
) -> None:
    """A decoder is causal: what lies before the difference is the same in both runs."""
    clean, corrupt = pair
    model = model_of(family)
    swept = Swept(
        model,
        spec_of(RunSource(run=capture(model, clean)), prompt_ids=tuple(corrupt), hooks=(hook,)),
    )

    unpatched = swept.begin.baselines[0].corrupt["logit_diff"]
    shared = next((p for p in range(len(clean)) if clean[p] != corrupt[p]), len(clean))
    for cell in swept.cells:
        if cell.position < shared:  # type: ignore[operator]
            assert cell.free
            assert cell.values == (unpatched,)


@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_nought_is_the_unpatched_run_and_alpha_one_the_source(family: str) -> None:
    """Both ends are exact, and in between the patch moves from one to the other."""
    model = model_of(family)
    source = RunSource(run=capture(model, CLEAN))
    swept = {
        alpha: Swept(model, spec_of(source, alpha=alpha, metrics=("logprob",)))
        for alpha in (0.0, 0.5, 1.0)
    }

    unpatched = swept[0.0].begin.baselines[0].corrupt["logprob"]
    assert set(swept[0.0].values().values()) == {unpatched}
    assert swept[0.0].begin.counts.computed == 0
    last = (0, "resid_post", LAYERS - 1, len(CORRUPT) - 1)
    clean = swept[1.0].begin.baselines[0].clean
    assert clean is not None
    assert swept[1.0].values()[last] == pytest.approx(clean["logprob"], abs=1e-5)
    assert swept[0.5].values()[last] not in (unpatched, pytest.approx(clean["logprob"], abs=1e-5))


@settings(max_examples=6)
@given(st.integers(1, 1 << 20), st.sampled_from(["importance", "position"]))
def test_the_size_and_the_order_of_chunks_do_not_matter(chunk_bytes: int, order: str) -> None:
    """How the work is cut changes when a cell comes, and nothing else."""
    model = model_of("gemma2")
    source = RunSource(run=capture(model, LONGER), alignment=ALIGNMENT)
    hooks = ("resid_pre", "resid_mid")

    cut = Swept(model, spec_of(source, hooks=hooks, chunk_bytes=chunk_bytes, order=order))

    whole = Swept(model, spec_of(source, hooks=hooks, chunk_bytes=1 << 40))
    assert cut.values() == pytest.approx(whole.values(), abs=1e-5)
    assert cut.begin.counts.token_layers == whole.begin.counts.token_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_one_hook_of_many_gives_what_it_gives_alone(family: str) -> None:
    """Hooks share baselines and work, and do not touch each other."""
    model = model_of(family)
    source = RunSource(run=capture(model, CLEAN))
    hooks = ("resid_mid", "mlp_out", "z", "post_block")

    together = Swept(model, spec_of(source, hooks=hooks))

    for hook in hooks:
        alone = Swept(model, spec_of(source, hooks=(hook,)))
        own = {cell: v for cell, v in together.values().items() if cell[1] == hook}
        assert own == pytest.approx(alone.values(), abs=1e-5)
        assert alone.begin.baselines == together.begin.baselines


def test_noising_is_denoising_with_the_prompts_exchanged() -> None:
    """With a corrupt source and the clean prompt, the whole patch gives the corrupt run."""
    model = model_of("gpt2")
    everywhere = (EVERY,)
    noised = Swept(
        model,
        spec_of(
            RunSource(run=capture(model, CORRUPT)),
            prompt_ids=CLEAN,
            positions=everywhere,
            metrics=("logprob",),
        ),
    )

    baselines = noised.begin.baselines[0]
    assert baselines.clean is not None
    for value in noised.values().values():
        assert value == pytest.approx(baselines.clean["logprob"], abs=1e-5)
