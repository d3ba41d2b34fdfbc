"""The optimizer step that runs, for who must know whether it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from transformers import TrainerState

if TYPE_CHECKING:
    from aegir_adapters.trainer.attempt import Attempt

__all__ = ["RunningStep"]


class RunningStep(Struct, frozen=True, kw_only=True, eq=False):
    """A step that began.

    Attributes:
        state: the trainer's state, which counts the steps that are done.
        before: how many were done when it began.
    """

    state: TrainerState
    before: int

    def end_if_done(self, attempt: Attempt) -> None:
        """Close the step's account if the optimizer has made it and nobody else did.

        So it is for who is told of a step's end before us. A step that is cut short keeps the
        records that it has, and gets no line of metrics.
        """
        if self.state.global_step > self.before:
            attempt.step_end(self.state.global_step, will_log=False)
