"""The data mix of a transformers `Trainer`, in the run's log and in the trainer's own logger."""

# ruff: noqa: ARG002 - transformers hands every event to a callback with all of these

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, Any

from transformers import DefaultFlowCallback, TrainerCallback

from aegir_adapters.mixing.observation import MixObservation
from aegir_stream.batch import Events
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink, MemorySink
from aegir_stream.typing import EventBatch

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from aegir_stream.events import StepMetrics

__all__ = ["Emit", "MixingCallback", "observe_mix"]

Emit = Callable[[EventBatch], object]
"""Takes a batch for the log and returns at once, as `Recorder.emit` does."""


class MixingCallback(TrainerCallback):
    """Writes one `StepMetrics` line for each step that the trainer logs.

    Brings the window together over all ranks when the trainer logs, which every rank does at the
    same steps; adds the scalars to what the trainer logs; rank 0 writes them to the log. What fails
    here does not reach the training loop: it is counted by `recorder`.

    Args:
        observation: what is observed, on every rank.
        emit: where rank 0's lines go, such as the `emit` of the callback that records the run; a
            journal of its own in the trainer's `output_dir` if absent.
    """

    def __init__(self, observation: MixObservation, *, emit: Emit | None = None) -> None:
        self._observation = observation
        self._emit = emit
        # Until training begins there is nothing to write to, but there may be failures to count.
        self._recorder = Recorder(MemorySink())
        self._collected: int | None = None

    @property
    def recorder(self) -> Recorder:
        """What counts failures, and writes the lines where no `emit` was given."""
        return self._recorder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the journal, and let the first window begin."""
        if self._emit is None and state.is_world_process_zero:
            # Training that was broken off has left its journal open.
            self._recorder.close(status="stopped")
            self._recorder = Recorder(JournalSink(RunDirectory.at(str(args.output_dir))))
        self._collected = state.global_step
        self._begin(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the next step begin: the trainer fetches its batch before it says so.

        Where this step is going to be logged, its window ends first.
        """
        if not control.should_log:
            self._begin(state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Bring the window together, once for each step: evaluations and summaries log as well."""
        if state.global_step == self._collected:
            return
        self._collected = state.global_step
        metrics = self._recorder.shield(self._observation.collect, state.global_step)
        self._begin(state.global_step + 1)
        if metrics is None:
            return
        for logged in (logs, *state.log_history[-1:]):
            if logged is not None:
                logged.update(_finite(metrics))
        if state.is_world_process_zero:
            emit = self._emit or self._recorder.emit
            self._recorder.shield(emit, Events("step_metrics", (metrics,), step=metrics.step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left."""
        self._recorder.close()

    def _begin(self, step: int) -> None:
        self._recorder.shield(self._observation.begin_step, step)


def observe_mix(
    trainer: Trainer, observation: MixObservation, *, emit: Emit | None = None
) -> MixingCallback:
    """Add a `MixingCallback` to a trainer, in front of those that report to trackers.

    So that W&B, TensorBoard and all others are handed the scalars with everything else. The trainer
    is started on every rank, and this is called there.

    Args:
        trainer: a transformers `Trainer`.
        observation: see `MixingCallback`.
        emit: see `MixingCallback`.
    """
    callback = MixingCallback(observation, emit=emit)
    callbacks = trainer.callback_handler.callbacks
    # The first of all decides which steps are logged, and has to be asked before us.
    flow = (at for at, each in enumerate(callbacks) if isinstance(each, DefaultFlowCallback))
    callbacks.insert(next(flow, -1) + 1, callback)
    return callback


def _finite(metrics: StepMetrics) -> dict[str, float]:
    """Return the values that a tracker can draw."""
    return {
        name: value
        for name, value in metrics.metrics.items()
        if value is not None and isfinite(value)
    }
