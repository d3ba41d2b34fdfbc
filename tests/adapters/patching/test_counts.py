from __future__ import annotations

import pytest

from adapters.patching.decoders import CLEAN, CORRUPT, LAYERS, decoder
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.chunks import STARTS_PER_RIDER
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import Engine
from aegir_adapters.patching.sources import RunSource, ZeroSource

N, L = len(CORRUPT), LAYERS


@pytest.fixture(scope="module")
def model() -> PatchableModel:
    """A model that the staircase can walk."""
    return PatchableModel(decoder("llama"))


def test_a_full_grid_costs_what_the_formula_says(model: PatchableModel) -> None:
    """What enters layer b at position p runs through L - b layers with n - p rows."""
    source = RunSource(run=capture(model, (70, *CLEAN[1:])))  # differs from the first token on

    swept = Swept(model, spec_of(source))

    counts = swept.end.counts
    triangle = N * (N + 1) // 2
    assert counts.token_layers == triangle * L * (L - 1) // 2
    assert counts.token_layers_naive == L * N * L * N
    assert counts.total == L * N
    # After the last layer only the last position is read.
    assert counts.free == N - 1
    assert counts.deduplicated == 0


@pytest.mark.parametrize(
    ("hook", "inside", "boundary"),
    [("resid_pre", 0, 0), ("attn_out", 1, 1), ("resid_mid", 1, 1), ("z", 1, 1), ("mlp_out", 0, 1)],
)
def test_each_hook_costs_what_its_place_says(
    model: PatchableModel, hook: str, inside: int, boundary: int
) -> None:
    """A patch inside a layer takes one row of that layer, and then what enters the next."""
    swept = Swept(model, spec_of(ZeroSource(), hooks=(hook,), layers=(1,), positions=(2,)))

    assert swept.end.counts.token_layers == inside + (L - 1 - boundary) * (N - 2)


def test_cells_that_cannot_change_anything_cost_nothing(model: PatchableModel) -> None:
    """Neither what lies before the first difference, nor an embedding of the same token."""
    same = [p for p in range(2, N) if CLEAN[p] == CORRUPT[p]]

    swept = Swept(model, spec_of(RunSource(run=capture(model, CLEAN)), hooks=("resid_pre",)))

    assert swept.end.counts.free == 2 * L + len(same)
    generic = sum(N - p for p in range(2, N)) * L * (L + 1) // 2
    assert swept.end.counts.token_layers == generic - sum(L * (N - p) for p in same)


def test_what_leaves_one_layer_and_enters_the_next_is_computed_once(
    model: PatchableModel,
) -> None:
    """Pre, mid and post of L layers are 2 L + 1 places."""
    source = ZeroSource()

    swept = Swept(model, spec_of(source, hooks=("resid_pre", "resid_mid", "resid_post")))

    counts = swept.end.counts
    assert counts.total == 3 * L * N
    assert counts.deduplicated == (L - 1) * N
    # After the last layer, mid and post matter at the last position only.
    assert counts.free == 2 * (N - 1)
    assert counts.computed == counts.total - counts.free - counts.deduplicated


@pytest.mark.parametrize("engine", ["staircase", "forwards"])
def test_what_is_predicted_is_what_is_done(model: PatchableModel, engine: Engine) -> None:
    """The counts at the beginning are counted again while computing."""
    other = PatchableModel(model.module)
    other.engine = engine
    spec = spec_of(
        RunSource(run=capture(other, CLEAN)),
        hooks=("resid_pre", "resid_mid", "z.1", "post_attn"),
        answer_ids=(17, 5),
        chunk_bytes=1 << 18,
    )

    swept = Swept(other, spec)

    assert len(swept.batches) > 2
    assert swept.begin.counts == swept.end.counts
    assert swept.end.counts.token_layers > 0


def test_riders_stay_rare(model: PatchableModel) -> None:
    """One rider stands for several first rows, so that noise costs little."""
    length = 3 * STARTS_PER_RIDER
    swept = Swept(
        model, spec_of(ZeroSource(), prompt_ids=tuple(range(3, 3 + length)), chunk_bytes=1 << 40)
    )

    assert len(swept.end.noise_floors) == 3
    groups = [floor.starts for floor in swept.end.noise_floors]
    assert sorted(start for group in groups for start in group) == list(range(length))
    assert swept.end.counts.token_layers_riders < swept.end.counts.token_layers / 4
    # A rider runs all rows of its group through every layer that a patch of these enters.
    assert swept.end.counts.token_layers_riders == sum((L - 1) * (length - g[0]) for g in groups)
