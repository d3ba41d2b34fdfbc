from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.patching.decoders import ANSWER, CLEAN, CORRUPT, FOIL, LAYERS, decoder
from adapters.patching.hooked import (
    activations,
    changed_output,
    patched_logits,
    row_moved,
    row_set,
)
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.sources import (
    FeatureSource,
    MeanSource,
    RunSource,
    Source,
    VectorSource,
    ZeroSource,
)
from aegir_stream.errors import OptionError

POSITIONS = (1, 4, 6)


@pytest.fixture(scope="module")
def module() -> Any:
    """The model itself."""
    return decoder("qwen3")


@pytest.fixture(scope="module")
def model(module: Any) -> PatchableModel:
    """The same, patchable."""
    return PatchableModel(module)


class Dictionary:
    """A small SAE: ReLU codes, a bias, and much that it does not explain."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.w_enc = torch.randn(32, 8, generator=generator)
        self.w_dec = torch.randn(8, 32, generator=generator)
        self.b_dec = torch.randn(32, generator=generator)

    def encode(self, x: Tensor, /) -> Tensor:
        """Return codes."""
        return (x @ self.w_enc + 0.5).relu()

    def decode(self, latents: Tensor, x: Tensor, /) -> Tensor:
        """Return reconstructions."""
        del x
        return latents @ self.w_dec + self.b_dec


def by_hand(module: Any, layer: int, position: int, edit: Any) -> float:
    """Return the logit difference with what leaves a layer edited."""
    context = changed_output(module.model.layers[layer], edit)
    last = patched_logits(module, CORRUPT, context)[-1]
    return float(last[ANSWER] - last[FOIL])


def test_zero_and_mean_and_vectors_replace_what_is_there(
    module: Any, model: PatchableModel
) -> None:
    """Every source equals a forward in which a hook puts the same row there."""
    runs = (capture(model, CLEAN), capture(model, (4, 8, 15, 16)))
    mean = [
        torch.cat([run.activations["resid_post"][layer] for run in runs]).mean(0)
        for layer in range(LAYERS)
    ]
    given = torch.randn(LAYERS, 32, generator=torch.Generator().manual_seed(1))
    vectors = VectorSource(vectors={("resid_post", layer): given[layer] for layer in range(LAYERS)})
    sources: list[tuple[Source, Tensor]] = [
        (ZeroSource(), torch.zeros(LAYERS, 32)),
        (MeanSource(runs=runs), torch.stack(mean)),
        (vectors, given),
    ]
    for source, rows in sources:
        swept = Swept(model, spec_of(source, positions=POSITIONS))
        for (_, _, layer, position), value in swept.values().items():
            expected = by_hand(module, layer, position, row_set(position, rows[layer]))
            assert value == pytest.approx(expected, abs=1e-4)
        assert swept.begin.baselines[0].clean is None


def test_alpha_is_the_share_of_the_source(module: Any, model: PatchableModel) -> None:
    """A quarter of the source and three quarters of what was there."""
    source, _ = activations(module, CLEAN)
    before, _ = activations(module, CORRUPT)

    swept = Swept(
        model,
        spec_of(RunSource(run=capture(model, CLEAN)), positions=(2, 5), alpha=0.25),
    )

    for (_, _, layer, position), value in swept.values().items():
        rows = [run["resid_post"][layer][position] for run in (source, before)]
        mixed = row_set(position, 0.25 * rows[0] + 0.75 * rows[1])
        assert value == pytest.approx(by_hand(module, layer, position, mixed), abs=1e-4)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_latents_contribution_is_patched_and_the_error_term_kept(
    module: Any,
    model: PatchableModel,
    replaced: bool,  # noqa: FBT001 - a parametrised case
) -> None:
    """The row moves along the latent's decoder direction, by as much as its activation changes."""
    sae = Dictionary()
    run = RunSource(run=capture(model, CLEAN)) if replaced else None
    latent = 5
    source, _ = activations(module, CLEAN)
    before, _ = activations(module, CORRUPT)

    swept = Swept(
        model, spec_of(FeatureSource(sae=sae, latent=latent, run=run), positions=POSITIONS)
    )

    moved = 0
    for (_, _, layer, position), value in swept.values().items():
        here = sae.encode(before["resid_post"][layer][position])[latent]
        there = sae.encode(source["resid_post"][layer][position])[latent] if replaced else 0.0
        moved += bool(here != there)
        edit = row_moved(position, (there - here) * sae.w_dec[latent])
        assert value == pytest.approx(by_hand(module, layer, position, edit), abs=1e-4)
    assert moved > 1


def test_an_unchanged_code_changes_nothing(model: PatchableModel) -> None:
    """A latent that fires nowhere is ablated for free, however bad the SAE is."""
    sae = Dictionary()
    sae.w_enc[:, 2] = 0.0
    sae.encode = lambda x: (x @ sae.w_enc).relu()  # type: ignore[method-assign]

    swept = Swept(model, spec_of(FeatureSource(sae=sae, latent=2)))

    assert swept.end.counts.free == swept.end.counts.total


def test_a_run_that_lacks_something_says_what(model: PatchableModel) -> None:
    """The message names the site, the layer and what the run holds."""
    run = capture(model, CLEAN, hooks=("resid_post",), layers=(0, 1))

    with pytest.raises(OptionError, match=r"without layers \[2\] \(it holds 0\.\.1\)"):
        Swept(model, spec_of(RunSource(run=run), positions=(6,)))
    with pytest.raises(OptionError, match=r"without attn_out \(it holds resid_post\)"):
        Swept(model, spec_of(RunSource(run=run), hooks=("attn_out",), layers=(1,)))
    with pytest.raises(OptionError, match="Expected an aligned position, got 4"):
        Swept(
            model,
            spec_of(RunSource(run=run, alignment={6: 6, 5: 4}), positions=(4,), layers=(1,)),
        )


def test_a_vector_of_another_shape_is_refused(model: PatchableModel) -> None:
    """The message has both shapes."""
    vectors = VectorSource(vectors={("resid_post", 0): torch.zeros(31)})

    with pytest.raises(OptionError, match=r"shape \(32,\) for resid_post of layer 0, got one of"):
        Swept(model, spec_of(vectors, layers=(0,)))
    with pytest.raises(OptionError, match="of layer 1, got none"):
        Swept(model, spec_of(vectors, layers=(1,)))


def test_unless_told_otherwise_every_aligned_position_is_swept(model: PatchableModel) -> None:
    """A source that has nothing for a position leaves it out."""
    run = capture(model, CLEAN, positions=(0, 2, 5))

    assert Swept(model, spec_of(RunSource(run=run))).begin.positions == ((0, 2, 5),)
    moved = RunSource(run=run, alignment={1: 2, 3: 4, 6: 5})
    assert Swept(model, spec_of(moved)).begin.positions == ((1, 6),)
    assert Swept(model, spec_of(ZeroSource())).begin.positions == (tuple(range(7)),)
