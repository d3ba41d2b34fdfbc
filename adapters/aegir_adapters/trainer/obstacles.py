"""Why a trainer, as it is set up, has no forward of a pass that a hook could read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aegir_stream.events import PassName

__all__ = ["SCORING_METHODS", "TURN_METHODS", "UNATTACHED", "UNLABELLED", "obstacle"]

TURN_METHODS: Final = ("_generate_single_turn",)
"""Where TRL generates, by release, the newest first."""

SCORING_METHODS: Final = ("_get_per_token_logps_and_entropies", "_get_per_token_logps")
"""Where TRL computes log-probabilities, by release, the newest first."""

UNATTACHED: Final = (
    "The callback is not attached to a trainer that generates completions, only to its model"
)
UNLABELLED: Final = (
    "The model was given no labels: what is recorded is every token that is not padding, be it"
    " learnt or not"
)
_VLLM: Final = "vLLM generates, with a model of its own that no hook reaches"
_BATCHING: Final = "Continuous batching generates from packed rows, which belong to no completion"
_ROLLOUT: Final = "A `rollout_func` generates, out of sight"
_RELEASE: Final = "This release of TRL has none of the methods {}"
_ALIGNED: Final = (
    "The trainer computes no old log-probabilities: gradient_accumulation_steps is a multiple of"
    " steps_per_generation * num_iterations, so those of the loss pass are the same"
)
_NO_REFERENCE: Final = "beta is 0, so there is no reference model"
_NO_EVALUATION: Final = "eval_strategy is `no`"
_LATER: Final = "No evaluation was run before the first step ended"


def obstacle(trainer: Any, name: PassName) -> str | None:
    """Return why nothing can be captured of a pass; `None` where nothing is known against it."""
    return _OBSTACLES[name](trainer) if name in _OBSTACLES else None


def _generation(trainer: Any) -> str | None:
    if getattr(trainer, "use_vllm", False):
        return _VLLM
    if getattr(trainer, "use_transformers_continuous_batching", False):
        return _BATCHING
    if getattr(trainer, "rollout_func", None) is not None:
        return _ROLLOUT
    return _missing(trainer, TURN_METHODS)


def _logprob(trainer: Any) -> str | None:
    args = trainer.args
    every = args.steps_per_generation * trainer.num_iterations
    corrected = getattr(trainer, "vllm_importance_sampling_correction", False)
    if args.gradient_accumulation_steps % every == 0 and not (
        getattr(trainer, "use_vllm", False) and corrected
    ):
        return _ALIGNED
    return _missing(trainer, SCORING_METHODS)


def _reference(trainer: Any) -> str | None:
    if not getattr(trainer, "beta", 0.0):
        return _NO_REFERENCE
    return _missing(trainer, SCORING_METHODS)


def _evaluation(trainer: Any) -> str:
    strategy = getattr(trainer.args.eval_strategy, "value", trainer.args.eval_strategy)
    return _NO_EVALUATION if strategy == "no" else _LATER


def _missing(trainer: Any, methods: Iterable[str]) -> str | None:
    if any(callable(getattr(trainer, name, None)) for name in methods):
        return None
    return _RELEASE.format(", ".join(methods))


_OBSTACLES: Final[dict[PassName, Callable[[Any], str | None]]] = {
    "prefill": _generation,
    "decode": _generation,
    "logprob": _logprob,
    "reference": _reference,
    "eval": _evaluation,
}
