from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.patching.trained import (
    CIRCUIT,
    Trained,
    adapted,
    compiled,
    differences,
    dropping,
    gpt2,
    grpo,
    plain,
    recorded_cells,
    stretching,
    sweeps_of,
    swept_alone,
)
from adapters.trainer.revealed import revealing_sae
from adapters.trainer.tiny import model, tokenizer
from aegir_adapters.patching.during_training import SweepCallback
from aegir_adapters.patching.spans import Span

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

# What PyTorch 2.13 hides on its own terms while it traces.
COMPILING = [
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
REENTRANT: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
}

TRAININGS = {
    "dropout, accumulation": partial(plain, policy=gpt2, gradient_accumulation_steps=2),
    "autocast, generations that last": partial(
        grpo, bf16=True, steps_per_generation=2, num_iterations=2, max_steps=3
    ),
    "gradient checkpointing": partial(grpo, policy=dropping, gradient_checkpointing=True),
    "adapters, reentrant checkpointing": partial(grpo, policy=adapted, beta=0.1, **REENTRANT),
    "forwards that remember and draw": partial(plain, policy=stretching),
    "compiled": pytest.param(
        partial(plain, torch_compile=True, torch_compile_backend="eager"), marks=COMPILING
    ),
    "compiled in place": pytest.param(partial(plain, policy=compiled), marks=COMPILING),
}


@pytest.mark.parametrize("make", TRAININGS.values(), ids=TRAININGS.keys())
def test_training_is_bit_for_bit_what_it_is_without(make: Any, tmp_path: Path) -> None:
    """Weights, gradients, random numbers, completions, modes, hooks and all else are the same."""
    alone = Trained(make(tmp_path / "alone"))
    callback = SweepCallback({"circuit": CIRCUIT}, every_steps=1)
    swept = Trained(make(tmp_path / "swept"), callback)
    assert callback.statistics().last_error is None
    assert callback.statistics().sweeps == len(sweeps_of(tmp_path / "swept")) > 2
    assert list(differences(swept.before.ends, swept.after.ends)) == []
    assert list(differences(swept(), alone())) == []


def loaded(checkpoint: Path) -> Any:
    """Return the policy of a checkpoint, with its adapters if it has some."""
    if (checkpoint / "adapter_config.json").exists():
        return PeftModel.from_pretrained(model(), checkpoint).merge_and_unload()
    return AutoModelForCausalLM.from_pretrained(checkpoint)


SAVED = {
    "whole": partial(grpo, policy=gpt2),
    "adapters": partial(grpo, policy=adapted, gradient_checkpointing=True),
    "bfloat16 autocast": partial(plain, bf16=True),
    "compiled in place": pytest.param(partial(plain, policy=compiled), marks=COMPILING),
}


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED.keys())
def test_the_policy_at_a_step_is_that_of_its_checkpoint(make: Any, tmp_path: Path) -> None:
    """A sweep at step N has the cells of a sweep of checkpoint-N; one at step 0 of the start."""
    trainer = make(tmp_path, save_strategy="steps", save_steps=2, save_only_model=True)
    trainer.save_model(tmp_path / "start")
    Trained(trainer, SweepCallback({"circuit": CIRCUIT}, every_steps=2))
    begun, ended = sweeps_of(tmp_path)
    assert [s.grids.started.step for s in (begun, ended) if s.grids.started] == [0, 2]
    for sweep, checkpoint in (begun, "start"), (ended, "checkpoint-2"):
        cells = swept_alone(loaded(tmp_path / checkpoint), CIRCUIT)
        assert recorded_cells(sweep) == pytest.approx(cells, abs=1e-5)
    assert recorded_cells(begun) != pytest.approx(recorded_cells(ended), abs=1e-2)


def test_a_training_that_goes_on_begins_with_its_checkpoint(tmp_path: Path) -> None:
    """The sweep before its first step is one of the policy at the checkpoint's step."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    Trained(plain(tmp_path, max_steps=2, **saving), SweepCallback({"a": CIRCUIT}, every_steps=2))
    resumed = plain(tmp_path, max_steps=4)
    resumed.add_callback(SweepCallback({"a": CIRCUIT}, every_steps=None, steps=[4]))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    start, ended, again, last = sweeps_of(tmp_path)
    begun = [sweep.grids.started for sweep in (start, ended, again, last)]
    assert [one.step for one in begun if one is not None] == [0, 2, 2, 4]
    assert recorded_cells(again) == recorded_cells(ended)
    assert recorded_cells(last) != pytest.approx(recorded_cells(ended), abs=1e-2)


def test_a_study_is_whatever_a_request_can_be(tmp_path: Path) -> None:
    """Pairs of prompts in groups, several metrics, estimates, ablations, latents, in words."""
    words = {"prompt": "w0 w1 w2", "clean_prompt": "w0 w5 w2", "answer": "w4", "foil_token": "w6"}
    pairs = [
        {"prompt": [3, 4, 5], "clean_prompt": [3, 9, 5]},
        {"prompt": [6, 7], "clean_prompt": [8, 7]},
    ]
    studies = {
        "words": words | {"positions": [Span("w1")], "metrics": ["rank", "kl"]},
        "pairs": {"pairs": pairs, "groups": {"first": [0, 1], "last": [-1]}, "answer_token": 8},
        "estimates": CIRCUIT | {"method": "attribution"},
        "ablation": {"prompt": [3, 4], "source": "zero", "answer": [8, 9], "layers": [0, 2]},
        "latent": {
            "prompt": [3, 4],
            "source": "latent",
            "latent": {"sae": "layer-1", "index": 5},
            "layers": [1],
            "hook": "resid_post",
            "answer": [8],
        },
    }
    callback = SweepCallback(
        studies,
        every_steps=None,
        steps=[1],
        start=False,
        tokenizer=tokenizer(),
        saes={"layer-1": revealing_sae()},
    )
    Trained(plain(tmp_path, max_steps=1), callback)
    assert callback.statistics().last_error is None
    found = [sweep.grids.started for sweep in sweeps_of(tmp_path)]
    assert [(one.study, one.metric) for one in found[:2] if one] == [
        ("words", "rank"),
        ("words", "kl"),
    ]
    started = {one.study: one for one in [*found[2:], found[0]] if one is not None}
    assert started.keys() == studies.keys()
    assert {one.model for one in started.values()} == {"policy at step 1"}
    assert started["words"].tokens == ("w0", "w1", "w2")
    assert (started["words"].clean_tokens, started["words"].positions) == (("w0", "w5", "w2"), (1,))
    assert (started["words"].answer, started["words"].foil) == ("w4", "w6")
    assert [pair.tokens for pair in started["pairs"].pairs] == [("w0", "w1", "w2"), ("w3", "w4")]
    assert started["pairs"].columns == ("first", "last")
    assert started["estimates"].method == "attribution"
    assert (started["ablation"].source, started["ablation"].answer) == ("zero", "w5 w6")
    latent = started["latent"].latent
    assert latent is not None
    assert (latent.layer, latent.index, latent.sae) == (1, 5, "layer-1")
