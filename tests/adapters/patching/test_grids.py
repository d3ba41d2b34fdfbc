from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from adapters.patching.decoders import (
    ALIGNMENT,
    ANSWER,
    CLEAN,
    CORRUPT,
    FOIL,
    LONGER,
    decoder,
)
from adapters.patching.hooked import activations, patched_logits, place
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import Engine
from aegir_adapters.patching.sources import RunSource

SEQUENTIAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "z.1")
PARALLEL = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "z.1")
ALIASES = ("pre_attn", "post_attn", "post_block")


def grid_by_hand(
    module: Any,
    hooks: Sequence[str],
    source_ids: Sequence[int],
    alignment: Mapping[int, int] | None,
) -> dict[tuple[Any, ...], float]:
    """Return the logit difference of every cell, from one forward for each."""
    source, _ = activations(module, source_ids)
    before, _ = activations(module, CORRUPT)
    found: dict[tuple[Any, ...], float] = {}
    for hook in hooks:
        for layer in range(module.config.num_hidden_layers):
            for position in range(len(CORRUPT)):
                other = position if alignment is None else alignment[position]
                context = place(module, hook, layer, position, source, other, before)
                last = patched_logits(module, CORRUPT, context)[-1]
                found[0, hook, layer, position] = float(last[ANSWER] - last[FOIL])
    return found


def apart(a: Mapping[Any, float], b: Mapping[Any, float]) -> float:
    """Return by how much two grids of the same cells differ."""
    assert a.keys() == b.keys()
    return max(abs(a[cell] - b[cell]) for cell in a)


@pytest.mark.parametrize("prompts", ["equal", "unequal"])
@pytest.mark.parametrize(
    ("family", "hooks"),
    [
        ("gpt2", SEQUENTIAL + ALIASES),
        ("llama", SEQUENTIAL + ALIASES),
        ("qwen2", SEQUENTIAL),
        ("qwen3", SEQUENTIAL),
        ("mistral", SEQUENTIAL),
        ("gemma2", SEQUENTIAL + ALIASES),
        ("gemma3", SEQUENTIAL),
        ("phi", PARALLEL),
        ("gpt_neox", PARALLEL),
        ("mixtral", SEQUENTIAL),
        ("qwen3_moe", SEQUENTIAL),
        ("olmo2", SEQUENTIAL),
    ],
)
def test_a_grid_equals_one_forward_with_one_plain_hook_for_each_cell(
    family: str, hooks: tuple[str, ...], prompts: str
) -> None:
    """Whatever the staircase leaves out, every cell is what a whole forward with a hook gives."""
    equal = prompts == "equal"
    source_ids, alignment = (CLEAN, None) if equal else (LONGER, ALIGNMENT)
    hooks = hooks if equal else hooks[:5]
    module = decoder(family, layers=3 if equal else 2)
    model = PatchableModel(module)
    assert model.engine == "staircase"
    source = RunSource(run=capture(model, source_ids), alignment=alignment)

    swept = Swept(model, spec_of(source, hooks=hooks, layers=tuple(range(model.num_layers))))

    by_hand = grid_by_hand(module, hooks, source_ids, alignment)
    assert apart(swept.values(), by_hand) < 1e-4
    unpatched = swept.begin.baselines[0].corrupt["logit_diff"]
    assert unpatched is not None
    assert max(abs(value - unpatched) for value in by_hand.values()) > 0.1, (
        "a model in which no patch does anything shows nothing"
    )


@pytest.mark.parametrize(
    ("family", "hooks"),
    [
        ("llama", SEQUENTIAL + ALIASES),
        ("gptj", ("resid_pre", "resid_post", "attn_out", "mlp_out")),
        ("mamba", ("resid_pre", "resid_post", "attn_out")),
    ],
)
def test_whole_forwards_give_the_same_grid(family: str, hooks: tuple[str, ...]) -> None:
    """The engine that stands in for the staircase is right for whatever has forward hooks."""
    module = decoder(family)
    model = PatchableModel(module)
    model.engine = "forwards"
    source = RunSource(run=capture(model, CLEAN))

    swept = Swept(model, spec_of(source, hooks=hooks))

    assert swept.begin.engine == "forwards"
    assert apart(swept.values(), grid_by_hand(module, hooks, CLEAN, None)) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_an_eager_attention_function_gives_the_same_grid(family: str) -> None:
    """Soft caps and masks that only the model's own function knows of are in it."""
    module = decoder(family)
    module.set_attn_implementation("eager")
    model = PatchableModel(module)
    assert model.engine == "staircase"

    swept = Swept(model, spec_of(RunSource(run=capture(model, CLEAN)), hooks=PARALLEL))

    assert apart(swept.values(), grid_by_hand(module, PARALLEL, CLEAN, None)) < 1e-4


@pytest.mark.parametrize("engine", ["staircase", "forwards"])
def test_several_answer_tokens_are_forced_one_after_the_other(engine: Engine) -> None:
    """The logprob of an answer of several tokens is the sum of what each has after the others."""
    module = decoder("llama")
    model = PatchableModel(module)
    model.engine = engine
    source_run = capture(model, CLEAN)
    answer, foil = (17, 3, 44), (23, 8)
    spec = spec_of(
        RunSource(run=source_run),
        hooks=("resid_mid", "resid_post"),
        answer_ids=answer,
        foil_ids=foil,
        metrics=("logprob", "logit_diff"),
    )

    swept = Swept(model, spec)

    source, _ = activations(module, CLEAN)
    before, _ = activations(module, CORRUPT)

    def forced(hook: str, layer: int, position: int, tokens: tuple[int, ...]) -> float:
        context = place(module, hook, layer, position, source, position, before)
        ids = (*CORRUPT, *tokens[:-1])
        rows = patched_logits(module, ids, context).log_softmax(-1)[-len(tokens) :]
        return float(rows[torch.arange(len(tokens)), torch.tensor(tokens)].sum())

    for (_, hook, layer, position), value in swept.values(0).items():
        assert value == pytest.approx(forced(hook, layer, position, answer), abs=1e-4)
        difference = value - forced(hook, layer, position, foil)
        assert swept.values(1)[0, hook, layer, position] == pytest.approx(difference, abs=1e-4)


def test_prompt_pairs_that_are_swept_together_give_what_each_gives_alone() -> None:
    """Pairs of equal and of other lengths share the work, and nothing else."""
    model = PatchableModel(decoder("qwen3"))
    pairs = [
        spec_of(RunSource(run=capture(model, CLEAN)), hooks=("resid_pre", "attn_out")),
        spec_of(
            RunSource(run=capture(model, CLEAN)),
            prompt_ids=(6, 90, 8, 31, 22, 40, 60),
            hooks=("resid_pre", "attn_out"),
            answer_ids=(50,),
        ),
        spec_of(
            RunSource(run=capture(model, (1, 2, 3, 4))),
            prompt_ids=(1, 2, 9, 4),
            hooks=("resid_pre", "attn_out"),
        ),
    ]

    together = Swept(model, pairs)

    assert len(together.begin.baselines) == 3
    for pair, spec in enumerate(pairs):
        alone = Swept(model, spec)
        own = {(0, *cell[1:]): v for cell, v in together.values().items() if cell[0] == pair}
        assert apart(own, alone.values()) < 1e-5


def test_pairs_of_one_length_can_be_read_from_different_rows_on() -> None:
    """A short prompt with a long answer is as long as a long prompt with a short answer."""
    model = PatchableModel(decoder("llama"))
    source = RunSource(run=capture(model, CLEAN))
    short = RunSource(run=capture(model, CLEAN[:-2]))
    pairs = [
        spec_of(short, prompt_ids=CORRUPT[:-2], answer_ids=(17, 5, 9), metrics=("logprob",)),
        spec_of(source, answer_ids=(17,), metrics=("logprob",)),
    ]

    together = Swept(model, pairs).values()

    for pair, spec in enumerate(pairs):
        for (_, *cell), value in Swept(model, spec).values().items():
            assert together[pair, *cell] == pytest.approx(value, abs=1e-5)
