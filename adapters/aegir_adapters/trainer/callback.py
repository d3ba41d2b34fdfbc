"""The callback that records a training run, and the one line that adds it to a trainer."""

# ruff: noqa: ARG002 - transformers hands every event to a callback with all of these

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from aegir_adapters.trainer.attachment import Attachment
from aegir_adapters.trainer.attempt import Attempt
from aegir_adapters.trainer.identity import drift_between, drift_error, run_identity
from aegir_adapters.trainer.layers import check_layers, check_saes, decoder_layers
from aegir_adapters.trainer.options import RecordingOptions
from aegir_adapters.trainer.recording import (
    Recording,
    completions_per_step,
    resumed_checkpoint,
)
from aegir_adapters.trainer.running_step import RunningStep
from aegir_stream.config import P5Cfg
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder, RecorderStatistics
from aegir_stream.sinks import MemorySink
from aegir_stream.typing import EventBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from aegir_adapters.trainer.attachment import LossListener
    from aegir_adapters.trainer.autoencoder import SparseAutoencoder

__all__ = ["SidecarCallback", "observe"]

_logger = logging.getLogger("aegir_stream")


class SidecarCallback(TrainerCallback):
    """Records SAE features, completions, rewards and progress of a training run.

    Attached to a trainer that generates completions (`GRPOTrainer` and alike), every token of every
    completion, once, under its completion's id. Otherwise, for any transformers `Trainer`, the
    tokens that the model is asked to learn. `observe` does both.

    Nothing that fails here reaches the training loop: it is counted, logged once, and shown by
    `statistics`. What raises does so before the first step: SAEs that do not fit the model, and a
    resumed run that is not the one that was recorded.

    Args:
        run: run directory or its configuration; the trainer's `output_dir` if not given.
        sae: the SAE of each layer to hook. Without any, there are no SAE records.
        **options: see `RecordingOptions`.
    """

    def __init__(
        self,
        run: P5Cfg | str | Path | None = None,
        *,
        sae: Mapping[int, SparseAutoencoder] | None = None,
        **options: Any,
    ) -> None:
        self.options = RecordingOptions(**options)
        self._cfg = run if isinstance(run, P5Cfg | None) else P5Cfg(output_dir=str(run))
        self._saes = dict(sorted((sae or {}).items()))
        self._identity: dict[str, Any] | None = None
        self._attachment: Attachment | None = None
        self._trainer: Any = None
        self._attempt: Attempt | None = None
        self._recording: Recording | None = None
        self._detached = self._tried = False
        self._running: RunningStep | None = None
        self._recorded_until: int | None = None
        # Until training begins there is nothing to write to, but there may be failures to count.
        self._recorder = Recorder(MemorySink())

    # -- before training ---------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> dict[str, Any]:
        """Check the SAEs against a model and return the identity of what will be recorded.

        Raises:
            LayerError: a layer is out of range, or the model's layers are not found.
            ShapeError: an SAE is not as wide as the model, or has fewer than `top_k` latents.
        """
        if self._saes:
            check_layers(self._saes, len(decoder_layers(model)))
            check_saes(self._saes, model, top_k=self.options.top_k)
        self._identity = run_identity(
            model, self._saes, top_k=self.options.top_k, metadata=self.options.metadata
        )
        return self._identity

    def check_budget(self, args: TrainingArguments) -> None:
        """Make sure that what is to be recorded of a step can be split among its completions.

        Raises:
            OptionError: `max_tokens_per_step` is less than one token for each.
        """
        self.options.sampling(completions_per_step=completions_per_step(args))

    def attach(self, trainer: Any) -> SidecarCallback:
        """Follow a trainer that generates completions; any other is followed by its labels.

        Wraps some of its methods until `detach`. Attaching again changes nothing. While it trains,
        recording begins with its next step.
        """
        if self._attachment is not None and self._trainer is not trainer:
            self.detach()
        self._detached = self._tried = False
        if self._attachment is not None:
            return self
        self._trainer = trainer
        self._attachment = Attachment(
            trainer, self._listener, guard=self._guarded, passes=self.options.passes
        )
        if self._attempt is not None and Attachment.fits(trainer):
            self._guarded(self._attempt.follow_trainer, trainer)
        return self

    def detach(self) -> None:
        """Give the trainer its methods back, remove every hook, and close the log. Idempotent.

        Also what to call after training that was broken off: its log then ends as `stopped`. While
        the trainer trains, a step that is done is recorded whole; `attach` goes on from there.
        """
        if self._attempt is not None and self._running is not None:
            self._guarded(self._running.end_if_done, self._attempt)
        self._detached, self._running = True, None
        if self._attachment is not None:
            self._attachment.undo()
        self._attachment = self._trainer = None
        self._guarded(self._end, status="stopped")

    @property
    def identity(self) -> dict[str, Any]:
        """What is recorded here, as `prepare` found it; empty before that."""
        return self._identity or {}

    def emit(self, batch: EventBatch) -> bool:
        """Add lines of another observer to the run's log, such as step metrics of your own.

        `False` if they were refused, or if nothing is being recorded. Never raises.
        """
        return self._attempt is not None and self._recorder.emit(batch)

    def statistics(self) -> RecorderStatistics:
        """Return what was written, dropped and failed in the present or last attempt."""
        return self._recorder.statistics()

    def _listener(self) -> LossListener | None:
        return self._attempt.listener if self._attempt is not None else None

    def _guarded(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call our code from the training loop: whatever it raises is kept, its time is charged."""
        began = self.options.clock.monotonic()
        result = self._recorder.shield(action, *args, **kwargs)
        if self._attempt is not None:
            self._attempt.reporter.charge(self.options.clock.monotonic() - began)
        return result

    # -- the trainer's events ----------------------------------------------------------------------

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the SAEs while the trainer is being made.

        Raises:
            LayerError: see `prepare`.
            ShapeError: see `prepare`.
            OptionError: see `check_budget`.
        """
        self.prepare(kwargs["model"])
        self.check_budget(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run and hook the model.

        Raises:
            IdentityDriftError: a resumed run differs from what its checkpoint was recorded with,
                and drift is not allowed. The log is as it was.
        """
        if self._detached:
            _logger.warning("Detached: this training is not recorded until attach(trainer)")
            return
        model = kwargs["model"]
        checkpoint = resumed_checkpoint(state.global_step)
        drift = self._guarded(self._drift, args, checkpoint, model) if checkpoint else {}
        if checkpoint and drift and not self.options.allow_drift:
            raise drift_error(checkpoint, drift)
        self._begin(args, state, model, since=state.global_step)
        if self._attempt is not None and self._recording is not None and drift:
            self._guarded(self._recording.note_drift, drift)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the step's account; begin to record, if that was asked for while training."""
        if self._attempt is None and not (self._tried or self._detached):
            self._begin(args, state, kwargs["model"], since=self._going_on_from(args, state))
        if self._attempt is not None:
            self._running = RunningStep(state=state, before=state.global_step)
            self._guarded(self._attempt.step_begin)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand over the step's records."""
        if self._attempt is not None:
            self._running = None
            step, will_log = state.global_step, control.should_log
            self._guarded(self._attempt.step_end, step, will_log=will_log)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the step's report."""
        if self._attempt is not None:
            self._guarded(self._attempt.logged, state.global_step, kwargs.get("logs") or {})

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seal the records since the last checkpoint, and describe them beside it."""
        if self._attempt is not None:
            self._guarded(self._attempt.seal, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left and close the run."""
        self._guarded(self._end)

    # -- an attempt --------------------------------------------------------------------------------

    def _run(self, args: TrainingArguments) -> RunDirectory:
        return RunDirectory(self._cfg or P5Cfg(output_dir=str(args.output_dir)))

    def _drift(self, args: TrainingArguments, checkpoint: str, model: nn.Module) -> dict[str, Any]:
        try:
            recorded = self._run(args).read_metadata(checkpoint)
        except FileNotFoundError:  # saved without this callback: nothing to differ from
            return {}
        return drift_between(recorded, self._identity or self.prepare(model))

    def _begin(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, *, since: int
    ) -> None:
        """Begin an attempt that goes on behind the step `since`, from scratch if that is 0."""
        self._tried = True
        self._guarded(self._open, args, state, model, since)
        if self._attempt is not None and self._recording is not None:
            self._guarded(self._recording.open)
            self._guarded(self._follow, self._attempt, state, model)

    def _going_on_from(self, args: TrainingArguments, state: TrainerState) -> int:
        """Return up to which step the log that is there belongs to this training, 0 if none is."""
        there = self._guarded(self._run(args).lanes, "sae_features")
        if not there:
            return 0
        return state.global_step if self._recorded_until is None else self._recorded_until

    def _open(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, since: int
    ) -> None:
        """Make a recorder for this attempt; what fails from here on is counted by it."""
        self._end(status="stopped")
        recording = Recording(
            self._run(args),
            args=args,
            identity=self._identity or self.prepare(model),
            options=self.options,
            resumed_step=since,
            last_step=state.max_steps,
        )
        self._recorder = recording.recorder
        # A run that never reaches `on_train_end` is closed with its callback. At interpreter exit
        # the recorder closes itself.
        weakref.finalize(self, recording.recorder.close, status="stopped").atexit = False
        self._recording = recording
        self._attempt = Attempt(recording, saes=self._saes, guard=self._guarded)

    def _follow(self, attempt: Attempt, state: TrainerState, model: nn.Module) -> None:
        attempt.hook(model)
        if Attachment.fits(self._trainer):
            attempt.follow_trainer(self._trainer)
        else:
            attempt.follow_model(model, state)

    def _end(self, *, status: str = "finished") -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end()
            self._recorded_until = attempt.last_step
            self._recorder.close(status=status)


def observe(
    trainer: Trainer,
    *,
    sae: Mapping[int, SparseAutoencoder] | None = None,
    output_dir: P5Cfg | str | Path | None = None,
    top_k: int = 16,
    **options: Any,
) -> SidecarCallback:
    """Record a trainer's run: adds the callback and attaches it.

    Args:
        trainer: a `GRPOTrainer`, or any other transformers `Trainer`.
        sae: the SAE of each layer to hook.
        output_dir: run directory; the trainer's `output_dir` if not given.
        top_k: latents recorded per token and layer.
        **options: see `RecordingOptions`.

    Raises:
        LayerError: a layer is out of range, or the model's layers are not found.
        ShapeError: an SAE is not as wide as the model, or has fewer than `top_k` latents.
        OptionError: an option is out of range, or a step's budget is not one token for each of its
            completions.
    """
    callback = SidecarCallback(output_dir, sae=sae, top_k=top_k, **options)
    callback.prepare(trainer.accelerator.unwrap_model(trainer.model))
    callback.check_budget(trainer.args)
    trainer.add_callback(callback)
    return callback.attach(trainer)
