from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from adapters.patching.decoders import CLEAN, CORRUPT, decoder
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.attention import tappable
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel, PatchingError
from aegir_adapters.patching.results import SweepBegin
from aegir_adapters.patching.sources import RunSource
from aegir_adapters.patching.sweep import sweep
from aegir_stream.errors import LayerError, OptionError

WITHOUT_MID = {"resid_mid", "pre_attn", "post_attn"}


@pytest.mark.parametrize(
    ("family", "refused"),
    [
        ("llama", set()),
        ("gemma2", set()),
        ("phi", WITHOUT_MID),
        ("gpt_neox", WITHOUT_MID),
        # What its branches return is scaled before it is added.
        ("granite", {*WITHOUT_MID, "attn_out", "mlp_out"}),
        # It calls an attention function of its own.
        ("gptj", {*WITHOUT_MID, "z"}),
        # Its attention adds to the residual stream itself.
        ("bloom", {*WITHOUT_MID, "attn_out", "mlp_out", "z"}),
        ("mamba", {*WITHOUT_MID, "mlp_out", "z"}),
        ("qwen3_next", {"z"}),
    ],
)
def test_hooks_that_a_family_does_not_have_are_refused_with_the_reason(
    family: str, refused: set[str]
) -> None:
    """A hook is offered only where its textbook meaning holds."""
    model = PatchableModel(decoder(family, layers=4))
    every = {"resid_pre", "resid_post", "post_block", "attn_out", "mlp_out", "z", *WITHOUT_MID}

    assert {hook.name for hook in model.hooks} == every - refused
    for name in refused:
        reason = model.refusal(name)
        assert reason is not None
        assert reason.startswith("layer 0 has no ")
        with pytest.raises(OptionError, match=f"got '{name}' - layer 0 has no"):
            model.hook(name)


@pytest.mark.parametrize("family", ["gptj", "bloom", "mamba", "qwen3_next"])
def test_a_model_that_the_staircase_cannot_walk_says_so(family: str) -> None:
    """Whole forwards stand in, and the reason names the layer."""
    model = PatchableModel(decoder(family, layers=4))

    assert model.engine == "forwards"
    assert "layer 0" in model.engine_reason
    assert "AttentionInterface" in model.engine_reason
    run = capture(model, CLEAN)
    swept = Swept(model, spec_of(RunSource(run=run), layers=(0, 1), answer_ids=(5, 6)))
    assert swept.begin.engine_reason == model.engine_reason
    assert len(swept.cells) == 2 * len(CORRUPT)


def test_a_model_whose_rows_are_not_independent_falls_back() -> None:
    """The check at load finds what no rule foresaw: here a layer that mixes rows by itself."""
    module = decoder("llama")
    leaky = module.model.layers[1].mlp

    def leak(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.1 * output.cumsum(1)

    leaky.register_forward_hook(leak)

    model = PatchableModel(module)

    assert model.engine == "forwards"
    assert "the staircase's logits are off by" in model.engine_reason


def test_an_attention_function_that_takes_no_mask_of_ours_falls_back() -> None:
    """Only attention that takes any mask can be asked for rows of many patches."""
    module = decoder("llama")
    module.config._attn_implementation = "flex_attention"
    try:
        assert not tappable(module)
    finally:
        module.config._attn_implementation = "sdpa"
    assert tappable(module)


def test_heads_are_counted() -> None:
    """`z.<head>` is refused beyond the last head."""
    model = PatchableModel(decoder("qwen3"))

    assert model.refusal("z.3") is None
    assert model.refusal("z.4") == "heads are 0..3"
    assert model.refusal("z.x") == "it is no hook"


def test_what_is_no_decoder_is_refused() -> None:
    """Without a list of decoder layers there is nothing to sweep."""
    with pytest.raises(PatchingError, match="Expected a model that holds its None decoder layers"):
        PatchableModel(nn.Linear(2, 2))


def traces_of(module: Any) -> tuple[Any, ...]:
    """Return everything that computing could have left behind in a model."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    training = [m.training for m in module.modules()]
    gradients = [(p.requires_grad, p.grad) for p in module.parameters()]
    return hooks, training, gradients, module.config._attn_implementation


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_between_two_items_the_model_is_as_it_was(family: str) -> None:
    """A policy that trains may be looked at between its steps: nothing is left behind."""
    module = decoder(family).train()
    module.base_model.get_input_embeddings().eval()
    before = traces_of(module)

    model = PatchableModel(module)
    assert traces_of(module) == before
    source = RunSource(run=capture(model, CLEAN))
    assert traces_of(module) == before
    items = sweep(model, spec_of(source, hooks=("resid_mid", "z"), chunk_bytes=1 << 17))
    for item in items:
        assert traces_of(module) == before
        if not isinstance(item, SweepBegin):
            break
    items.close()
    assert traces_of(module) == before


def test_a_sweep_of_a_training_model_has_no_dropout() -> None:
    """What is measured is the model, not a draw of its dropout."""
    module = decoder("gpt2")
    still = PatchableModel(module)
    expected = Swept(still, spec_of(RunSource(run=capture(still, CLEAN)))).values()
    module.train()

    swept = Swept(still, spec_of(RunSource(run=capture(still, CLEAN))))

    assert swept.values() == expected


def test_another_thread_sees_the_models_own_attention() -> None:
    """A tap works for the thread that set it: others go on as if there were none."""
    module = decoder("llama")
    model = PatchableModel(module)
    ids = torch.tensor([CORRUPT])
    with torch.no_grad():
        expected = module(ids).logits
    seen = []

    class Refusing:
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    def forward() -> None:
        with torch.no_grad():
            seen.append(module(ids).logits)

    with model.computing(Refusing()):
        other = threading.Thread(target=forward)
        other.start()
        other.join()

    assert torch.equal(seen[0], expected)


def test_a_failure_inside_leaves_nothing_behind() -> None:
    """Whatever breaks while computing, hooks and configuration are put back."""
    module = decoder("llama")
    model = PatchableModel(module)
    source = RunSource(run=capture(model, CLEAN))

    class BrokenError(Exception):
        pass

    def breaks(*_: Any) -> None:
        raise BrokenError

    handle = module.model.layers[1].mlp.register_forward_hook(breaks)
    before = traces_of(module)
    with pytest.raises(BrokenError):
        list(sweep(model, spec_of(source)))
    assert traces_of(module) == before
    handle.remove()
    assert len(Swept(model, spec_of(source)).cells) == 21


def test_capture_keeps_what_was_asked_for() -> None:
    """A run holds whole tensors of the hooks, layers and positions, and knows its prompt."""
    model = PatchableModel(decoder("qwen3"))

    run = capture(model, CLEAN, hooks=("resid_mid", "z"), layers=(0, 2), positions=(1, 6))

    assert run.token_ids == CLEAN
    assert run.layers == (0, 2)
    assert run.activations["resid_mid"].shape == (2, 2, 32)
    assert run.activations["z"].shape == (2, 2, 4, 16)
    assert run.size_bytes == 4 * (2 * 2 * 32 + 2 * 2 * 4 * 16)
    whole = capture(model, CLEAN)
    assert set(whole.activations) == {hook.site for hook in model.hooks}
    assert torch.equal(whole.at("z", 2, [1, 6]), run.at("z", 2, [1, 6]))
    assert run.missing("z", [0, 1], [1]) == "layers [1] (it holds 0, 2)"


def test_capture_refuses_what_is_not_there() -> None:
    """Layers and positions outside the model and the prompt are named."""
    model = PatchableModel(decoder("gpt2"))

    with pytest.raises(LayerError, match=r"Expected layers in 0\.\.2, got \[3\]"):
        capture(model, CLEAN, layers=(3,))
    with pytest.raises(OptionError, match=r"Expected positions in 0\.\.6, got \[7\]"):
        capture(model, CLEAN, positions=(7,))
    with pytest.raises(OptionError, match="got 'resid_middle' - it is no hook"):
        capture(model, CLEAN, hooks=("resid_middle",))
