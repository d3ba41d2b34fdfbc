from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from aegir_adapters.trainer.obstacles import obstacle

if TYPE_CHECKING:
    from aegir_stream.events import PassName


def trainer(**members: Any) -> SimpleNamespace:
    """Return what is looked at of a trainer that has every pass; vLLM is not at hand here."""
    args = SimpleNamespace(
        gradient_accumulation_steps=1,
        steps_per_generation=members.pop("steps_per_generation", 2),
        eval_strategy=members.pop("eval_strategy", "steps"),
    )
    usual: dict[str, Any] = {
        "args": args,
        "num_iterations": 1,
        "beta": 0.1,
        "_generate_single_turn": print,
        "_get_per_token_logps_and_entropies": print,
    }
    return SimpleNamespace(**usual | members)


@pytest.mark.parametrize("name", ["loss", "prefill", "decode", "logprob", "reference"])
def test_nothing_is_said_against_a_pass_that_the_trainer_has(name: PassName) -> None:
    """A usual trainer gives all of them."""
    assert obstacle(trainer(), name) is None


@pytest.mark.parametrize(
    ("name", "members", "why"),
    [
        ("decode", {"use_vllm": True}, "vLLM"),
        ("prefill", {"use_transformers_continuous_batching": True}, "Continuous batching"),
        ("decode", {"rollout_func": print}, "rollout_func"),
        ("decode", {"_generate_single_turn": None}, "_generate_single_turn"),
        ("logprob", {"steps_per_generation": 1}, "steps_per_generation"),
        ("logprob", {"steps_per_generation": 1, "use_vllm": True}, "steps_per_generation"),
        ("logprob", {"_get_per_token_logps_and_entropies": None}, "release of TRL"),
        ("reference", {"beta": 0.0}, "beta is 0"),
        ("reference", {"_get_per_token_logps_and_entropies": None}, "release of TRL"),
        ("eval", {"eval_strategy": "no"}, "eval_strategy"),
        ("eval", {}, "before the first step ended"),
    ],
)
def test_a_pass_that_cannot_be_read_is_explained(
    name: PassName, members: dict[str, Any], why: str
) -> None:
    """The reason names the setting, or the method that this release does not have."""
    assert why in (obstacle(trainer(**members), name) or "")


def test_log_probabilities_that_correct_for_vllm_are_always_there() -> None:
    """They are computed although generations and steps are aligned."""
    aligned = trainer(
        steps_per_generation=1, use_vllm=True, vllm_importance_sampling_correction=True
    )
    assert obstacle(aligned, "logprob") is None


def test_older_names_of_a_method_do_as_well() -> None:
    """A release that computes log-probabilities without entropies is read all the same."""
    older = trainer(_get_per_token_logps_and_entropies=None, _get_per_token_logps=print)
    assert obstacle(older, "logprob") is None
