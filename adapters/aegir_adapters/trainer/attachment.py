"""Watching a few methods of one trainer object, and letting go of them again."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, Protocol

from aegir_adapters.trainer.obstacles import SCORING_METHODS, TURN_METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aegir_stream.events import PassName

__all__ = ["Attachment", "Listener", "LossListener"]

_REWARDS = "_calculate_rewards"
_GENERATION = "_generate_and_score_completions"
_LOSS = "compute_loss"

_FURTHER: Final = (
    ({"prefill", "decode"}, TURN_METHODS, "turn"),
    ({"logprob", "reference"}, SCORING_METHODS, "scoring"),
)
"""Which passes need to know of which methods, and what their calls are called."""


class LossListener(Protocol):
    """Who is told that a trainer computes its loss (see `Listener`)."""

    def loss_begin(self, call: Mapping[str, Any]) -> None:
        """The trainer is about to run a loss pass."""

    def loss_end(self, result: Any) -> None:
        """It has; the backward pass comes next."""


class Listener(LossListener, Protocol):
    """Who is told what the trainer does.

    `call` holds the arguments of the trainer's method by name; `result` is what it returned,
    `None` where it raised. Whatever a listener raises stops at the guard.
    """

    def rewards_begin(self, call: Mapping[str, Any]) -> None:
        """The trainer is about to judge completions."""

    def rewards_end(self, result: Any) -> None:
        """It has: `result` holds the rewards of all ranks."""

    def generation_begin(self, call: Mapping[str, Any]) -> None:
        """The trainer is about to generate."""

    def generation_end(self, result: Any) -> None:
        """It has: `result` is the generation batch, before it is shuffled and split."""

    def turn_begin(self, call: Mapping[str, Any]) -> None:
        """The trainer's model is about to generate."""

    def turn_end(self, result: Any) -> None:
        """It has."""

    def scoring_begin(self, call: Mapping[str, Any]) -> None:
        """The trainer is about to compute log-probabilities, be it for the loss or before."""

    def scoring_end(self, result: Any) -> None:
        """It has."""


class Attachment:
    """Wraps bound methods on a trainer instance; its class is left alone.

    The original is called exactly once per call, with the arguments as they came; what it
    returns is returned and what it raises is raised.

    Args:
        trainer: a TRL trainer that generates completions (`GRPOTrainer` or alike); of any other,
            only its loss is watched.
        listener: returns who is told, `None` for nobody.
        guard: calls a function so that its failure reaches nobody.
        passes: the passes that are recorded; what only others need is not wrapped.
    """

    def __init__(
        self,
        trainer: Any,
        listener: Callable[[], LossListener | None],
        *,
        guard: Callable[..., Any],
        passes: Iterable[PassName] = ("loss",),
    ) -> None:
        self._trainer = trainer
        self._guard = guard
        self._listener = listener
        self._undo: list[tuple[str, Any, Any]] = []
        self._watch(_LOSS, "loss")
        if not self.fits(trainer):
            return
        self._watch(_REWARDS, "rewards")
        self._watch(_GENERATION, "generation")
        for needed_by, names, event in _FURTHER:
            known = [name for name in names if callable(getattr(trainer, name, None))]
            if known and needed_by.intersection(passes):
                self._watch(known[0], event)

    @staticmethod
    def fits(trainer: Any) -> bool:
        """Tell whether a trainer generates completions, by its methods."""
        return all(callable(getattr(trainer, n, None)) for n in (_REWARDS, _GENERATION, _LOSS))

    def undo(self) -> None:
        """Give the trainer its methods back. Idempotent.

        A method that somebody else has wrapped since stays wrapped; our part of it then only
        passes the call on.
        """
        self._listener = lambda: None
        while self._undo:
            name, ours, previous = self._undo.pop()
            if vars(self._trainer).get(name) is not ours:
                continue
            if previous is None:
                delattr(self._trainer, name)
            else:
                setattr(self._trainer, name, previous)

    def _watch(self, name: str, event: str) -> None:
        original = getattr(self._trainer, name)
        parameters = signature(original)

        def announce(listener: LossListener, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = parameters.bind_partial(*args, **kwargs).arguments
            getattr(listener, f"{event}_begin")(call)

        @wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            listener = self._listener()
            if listener is None:
                return original(*args, **kwargs)
            self._guard(announce, listener, args, kwargs)
            result = None
            try:
                result = original(*args, **kwargs)
            finally:
                self._guard(getattr(listener, f"{event}_end"), result)
            return result

        self._undo.append((name, watched, vars(self._trainer).get(name)))
        setattr(self._trainer, name, watched)
