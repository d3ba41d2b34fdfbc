"""Watching three methods of one trainer object, and letting go of them again."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Attachment", "Listener"]

_REWARDS = "_calculate_rewards"
_GENERATION = "_generate_and_score_completions"
_LOSS = "compute_loss"


class Listener(Protocol):
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

    def loss_begin(self, call: Mapping[str, Any]) -> None:
        """The trainer is about to run a loss pass."""

    def loss_end(self, result: Any) -> None:
        """It has; the backward pass comes next."""


class Attachment:
    """Wraps three bound methods on a trainer instance; its class is left alone.

    The original is called exactly once per call, with the arguments as they came; what it
    returns is returned and what it raises is raised.

    Args:
        trainer: a TRL trainer that generates completions (`GRPOTrainer` or alike).
        listener: returns who is told, `None` for nobody.
        guard: calls a function so that its failure reaches nobody.
    """

    def __init__(
        self,
        trainer: Any,
        listener: Callable[[], Listener | None],
        *,
        guard: Callable[..., Any],
    ) -> None:
        self._trainer = trainer
        self._guard = guard
        self._listener = listener
        self._undo: list[tuple[str, Any, Any]] = []
        self._watch(_REWARDS, "rewards")
        self._watch(_GENERATION, "generation")
        self._watch(_LOSS, "loss")

    @staticmethod
    def fits(trainer: Any) -> bool:
        """Tell whether a trainer has the methods that are watched."""
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

        def announce(listener: Listener, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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
