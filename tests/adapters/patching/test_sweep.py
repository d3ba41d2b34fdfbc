from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from adapters.patching.decoders import ALIGNMENT, CLEAN, CORRUPT, LONGER, decoder
from adapters.patching.hooked import activations, patched_logits, place
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.attribution import rank_correlation
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.metrics import METRICS
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import SweepBegin, SweepEnd
from aegir_adapters.patching.sources import RunSource, ZeroSource
from aegir_adapters.patching.sweep import sweep
from aegir_stream.errors import LayerError, OptionError
from aegir_stream.testing import ManualClock


@pytest.fixture(scope="module")
def module() -> Any:
    """The model itself."""
    return decoder("llama")


@pytest.fixture(scope="module")
def model(module: Any) -> PatchableModel:
    """The same, patchable."""
    return PatchableModel(module)


@pytest.fixture(scope="module")
def clean(model: PatchableModel) -> RunSource:
    """A clean run."""
    return RunSource(run=capture(model, CLEAN))


def test_every_metric_is_read_from_the_same_logits(
    module: Any, model: PatchableModel, clean: RunSource
) -> None:
    """Each equals its formula, written out for one cell."""
    spec = spec_of(clean, layers=(1,), positions=(5,), metrics=METRICS)

    [cell] = Swept(model, spec).cells

    source, clean_logits = activations(module, CLEAN)
    before, corrupt_logits = activations(module, CORRUPT)
    context = place(module, "resid_post", 1, 5, source, 5, before)
    patched = patched_logits(module, CORRUPT, context)[-1].log_softmax(-1)
    there, here = (x[-1].log_softmax(-1) for x in (clean_logits, corrupt_logits))

    def share(x: float, corrupt: float, clean: float) -> float:
        return (x - corrupt) / (clean - corrupt)

    differences = [float(x[17] - x[23]) for x in (patched, here, there)]
    expected = {
        "logprob": float(patched[17]),
        "logit_diff": differences[0],
        "recovered": share(float(patched[17]), float(here[17]), float(there[17])),
        "recovered_logit_diff": share(*differences),
        "kl": float((there.exp() * (there - patched)).sum()),
        "rank": float((patched > patched[17]).sum()),
    }
    assert dict(zip(METRICS, cell.values, strict=True)) == pytest.approx(expected, abs=1e-4)


def test_recovered_is_nothing_where_it_is_undefined(model: PatchableModel) -> None:
    """No raw value ever stands under that name, and a warning says why there is none."""
    metrics = ("recovered", "logprob", "recovered_logit_diff")
    ablated = Swept(model, spec_of(ZeroSource(), metrics=metrics))
    same = Swept(model, spec_of(RunSource(run=capture(model, CORRUPT)), metrics=metrics))

    for swept, why in (
        (ablated, "the source has no prompt"),
        (same, "clean and corrupt are equal"),
    ):
        assert swept.begin.warnings == (
            f"recovered is undefined for pair 0: {why}",
            f"recovered_logit_diff is undefined for pair 0: {why}",
        )
        for cell in swept.cells:
            assert cell.values[0] is None
            assert cell.values[1] is not None
            assert cell.error is None


def test_without_a_clean_prompt_kl_is_the_distance_from_the_unpatched_run(
    model: PatchableModel,
) -> None:
    """An ablation that changes nothing has distance nought."""
    swept = Swept(model, spec_of(ZeroSource(), metrics=("kl",)))

    assert swept.begin.baselines[0].corrupt["kl"] == pytest.approx(0.0, abs=1e-6)
    free = [cell.values[0] for cell in swept.cells if cell.free]
    assert free
    assert free == [swept.begin.baselines[0].corrupt["kl"]] * len(free)


def test_free_cells_come_first_and_then_the_most_promising(
    model: PatchableModel, clean: RunSource
) -> None:
    """The preview decides the order; the first chunk is small, so that results come soon."""
    swept = Swept(model, spec_of(clean, hooks=("resid_pre", "attn_out"), chunk_bytes=1 << 17))

    assert all(cell.free for cell in swept.batches[0].cells)
    computed = swept.batches[1:]
    assert len(computed) > 2
    assert not any(cell.free for batch in computed for cell in batch.cells)
    still = swept.begin.baselines[0].corrupt["logit_diff"]
    strongest = [
        max(abs(cell.values[0] - still) for cell in batch.cells)  # type: ignore[operator]
        for batch in computed
    ]
    # The preview is no oracle; it has to be right about the beginning and the end.
    assert max(strongest[: len(strongest) // 2]) == max(strongest)
    assert swept.end.rank_correlation is not None
    assert swept.end.rank_correlation > 0.5


def test_the_order_of_positions_needs_no_preview(model: PatchableModel, clean: RunSource) -> None:
    """Without a preview there are no gradients, and no rank correlation."""
    previewed = Swept(model, spec_of(clean))
    ordered = Swept(model, spec_of(clean, order="position", chunk_bytes=1))

    assert ordered.end.rank_correlation is None
    computed = [cell.position for cell in ordered.cells if not cell.free]
    assert computed == sorted(computed)
    less = previewed.end.counts.token_layers_baselines - ordered.end.counts.token_layers_baselines
    assert less == 3 * 3 * len(CORRUPT)


def test_the_preview_is_exact_where_the_model_is_linear(model: PatchableModel) -> None:
    """A patch far smaller than any curvature has the effect that its gradient says."""
    small = Swept(
        model,
        spec_of(
            RunSource(run=capture(model, LONGER), alignment=ALIGNMENT),
            hooks=("resid_pre", "resid_mid", "mlp_out", "attn_out", "z", "z.2"),
            alpha=0.01,
        ),
    )

    assert small.end.rank_correlation is not None
    assert small.end.rank_correlation > 0.98


def test_frozen_weights_can_be_previewed() -> None:
    """Gradients are taken of activations, so weights may need none, and get none."""
    module = decoder("gpt2").requires_grad_(False)
    model = PatchableModel(module)

    swept = Swept(model, spec_of(RunSource(run=capture(model, CLEAN))))

    assert swept.end.rank_correlation is not None
    assert all(p.grad is None for p in module.parameters())


def test_rank_correlation_is_spearmans() -> None:
    """Equal values share their rank; too few values have none."""
    assert rank_correlation([1, 2, 3], [10, 20, 40]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # scipy.stats.spearmanr gives the same.
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)
    assert rank_correlation([1], [1]) is None
    assert rank_correlation([1, 1], [1, 2]) is None


def test_cells_under_the_noise_floor_are_flagged(model: PatchableModel, clean: RunSource) -> None:
    """A cell whose value an unpatched row reaches as well is not told from no effect."""
    swept = Swept(model, spec_of(clean, hooks=("resid_post", "resid_pre"), alpha=1e-9))
    strong = Swept(model, spec_of(clean))

    still = swept.begin.baselines[0].corrupt["logit_diff"]
    floors = {(f.chunk, start): f.values for f in swept.end.noise_floors for start in f.starts}
    assert floors
    for cell in swept.cells:
        distance = abs(cell.values[0] - still)  # type: ignore[operator]
        if distance == 0:
            assert cell.below_noise
        if distance > swept.end.noise_floor["logit_diff"]:
            assert not cell.below_noise
    assert not all(cell.below_noise for cell in strong.cells)
    assert swept.end.noise_floor["logit_diff"] < 1e-5


def test_positions_can_be_patched_together(
    module: Any, model: PatchableModel, clean: RunSource
) -> None:
    """A span is one cell, in which all its rows are overwritten."""
    swept = Swept(model, spec_of(clean, hooks=("resid_post", "attn_out"), positions=((5, 2), 2, 5)))

    source, _ = activations(module, CLEAN)
    before, _ = activations(module, CORRUPT)
    for hook in ("resid_post", "attn_out"):
        for layer in range(3):
            contexts = [place(module, hook, layer, p, source, p, before) for p in (2, 5)]
            with contexts[0]:
                last = patched_logits(module, CORRUPT, contexts[1])[-1]
            expected = float(last[17] - last[23])
            assert swept.values()[0, hook, layer, (5, 2)] == pytest.approx(expected, abs=1e-4)


def test_a_cell_that_is_not_finite_fails_alone(model: PatchableModel) -> None:
    """One broken row has no value and an error; the others have theirs."""
    run = capture(model, CLEAN, hooks=("resid_post",))
    run.activations["resid_post"][1, 5] = math.nan

    swept = Swept(model, spec_of(RunSource(run=run)))

    failed = [cell for cell in swept.cells if cell.error]
    assert [(cell.layer, cell.position, cell.values) for cell in failed] == [(1, 5, (None,))]
    assert swept.end.failed == 1
    assert all(cell.values[0] is not None for cell in swept.cells if cell is not failed[0])


def test_time_in_which_the_caller_is_at_work_does_not_count(
    model: PatchableModel, clean: RunSource
) -> None:
    """The elapsed time is the sweep's own."""
    clock = ManualClock()
    last = None
    for item in sweep(model, spec_of(clean), clock=clock):
        if not isinstance(item, SweepEnd):
            clock.advance(100.0)
        last = item

    assert isinstance(last, SweepEnd)
    assert last.elapsed_s == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hooks": ()}, "Expected `hooks` to be at least one"),
        ({"hooks": ("z", "z")}, "Expected `hooks` to be each once"),
        ({"hooks": ("resid",)}, "got 'resid' - it is no hook"),
        ({"positions": (7,)}, r"positions of the prompt, 0\.\.6, each once, got 7"),
        ({"positions": ((1, 1),)}, r"each once, got \(1, 1\)"),
        ({"positions": ()}, "Expected `positions` to be at least one"),
        ({"alpha": math.nan}, "Expected `alpha` to be a finite number, got nan"),
        ({"metrics": ("accuracy",)}, "Expected `metrics` to be some of logprob, "),
        ({"foil_ids": None}, "Expected `foil_ids` to be the token that `logit_diff`"),
        ({"foil_ids": ()}, "Expected `foil_ids` to be at least one"),
        ({"answer_ids": ()}, "Expected `answer_ids` to be at least one"),
        ({"answer_ids": (101,)}, r"token ids in 0\.\.100, got 101"),
        ({"prompt_ids": ()}, "Expected `prompt_ids` to be at least one"),
        ({"chunk_bytes": 0}, "Expected `chunk_bytes` to be at least 1"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_the_call(
    model: PatchableModel, clean: RunSource, options: dict[str, Any], message: str
) -> None:
    """Nothing is computed first, and the message names the field and what it may be."""
    with pytest.raises(OptionError, match=message):
        sweep(model, spec_of(clean, **options))


def test_layers_that_do_not_exist_are_refused(model: PatchableModel, clean: RunSource) -> None:
    """The message names the model's layers."""
    with pytest.raises(LayerError, match=r"Expected layers in 0\.\.2, got 3"):
        sweep(model, spec_of(clean, layers=(0, 3)))


def test_pairs_must_share_what_is_swept(model: PatchableModel, clean: RunSource) -> None:
    """Pairs are computed together, so they have one set of hooks."""
    with pytest.raises(OptionError, match="Expected `hooks` to be that of the first"):
        sweep(model, [spec_of(clean), spec_of(clean, hooks=("z",))])
    with pytest.raises(OptionError, match="at least one `SweepSpec`"):
        sweep(model, [])


def test_baselines_are_known_before_the_first_cell(
    module: Any, model: PatchableModel, clean: RunSource
) -> None:
    """The beginning holds the metrics of both prompts, unpatched."""
    begin = next(sweep(model, spec_of(clean, metrics=("logprob", "recovered"))))

    assert isinstance(begin, SweepBegin)
    with torch.no_grad():
        both = module(torch.tensor([CLEAN, CORRUPT])).logits[:, -1].log_softmax(-1)[:, 17]
    [baselines] = begin.baselines
    assert baselines.clean == pytest.approx({"logprob": float(both[0]), "recovered": 1.0}, abs=1e-5)
    assert baselines.corrupt == pytest.approx(
        {"logprob": float(both[1]), "recovered": 0.0}, abs=1e-5
    )
