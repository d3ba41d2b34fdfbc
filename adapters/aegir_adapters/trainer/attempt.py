"""One call of `Trainer.train`: from its first step to its last, all on the training thread."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from aegir_adapters.trainer.capture import Capture
from aegir_adapters.trainer.columns import ColumnPool
from aegir_adapters.trainer.deferred import Deferred
from aegir_adapters.trainer.generation import StepRewards
from aegir_adapters.trainer.layers import decoder_layers
from aegir_adapters.trainer.loss_pass import LossPass
from aegir_adapters.trainer.model_pass import ModelPass
from aegir_adapters.trainer.records import PassRecords
from aegir_adapters.trainer.report import StepReporter
from aegir_adapters.trainer.rows import RowEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from transformers import TrainerState

    from aegir_adapters.trainer.autoencoder import SparseAutoencoder
    from aegir_adapters.trainer.capture import CapturedPass
    from aegir_adapters.trainer.generation import Generation
    from aegir_adapters.trainer.recording import Recording
    from aegir_adapters.trainer.report import StepReport
    from aegir_stream.typing import EventBatch

__all__ = ["Attempt"]

_logger = logging.getLogger("aegir_stream")

_COMPLETION_BYTES = 4096
"""Memory that a completion's token ids, text and rewards hold while queued, generously."""

_HELD_SHARE = 0.5
"""How much of the queue's bound may be held back for a later spill."""

_JOINED = ("completion", "rewards", "advantage")
_UNATTACHED = (
    "The callback is not attached to a trainer that generates completions: records are the tokens"
    " that the model is asked to learn, and carry no completion id or reward"
)
_UNREADABLE = (
    "The trainer's batches could not be read: records carry no completion id or reward;"
    " the callback's statistics() name the error"
)


class Attempt:
    """Turns what a trainer does into batches for a recorder.

    Records of a step are handed over when the step ends, those of `spill_every` steps together.

    Args:
        recording: where the batches go; rank 0 reports on steps and progress.
        saes: the SAE of each hooked layer.
        guard: calls a function so that its failure reaches nobody, and charges the step for it.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        saes: Mapping[int, SparseAutoencoder],
        guard: Callable[..., Any],
    ) -> None:
        options = recording.options
        self.reporter = StepReporter(options.clock, best=recording.best)
        self.loss_pass: LossPass | None = None
        self._recorder = recording.recorder
        self._options = options
        self._reports = recording.rank == 0
        self._spill_every = max(1, recording.run.cfg.sae_live_spill_every_n_steps)
        self._guard = guard
        self._capture = Capture(saes, top_k=options.top_k, guard=guard)
        self._model_pass: ModelPass | None = None
        self._pool = ColumnPool()
        self._encoder = RowEncoder(options.precision)
        self._held: list[EventBatch] = []
        self._rewards = StepRewards()
        self._unlogged: StepReport | None = None
        self._tokens: Counter[int] = Counter()
        self._joined = False
        self._tested = False

    # -- whom to follow ----------------------------------------------------------------------------

    def hook(self, model: nn.Module) -> None:
        """Register the hooks on the model's decoder layers.

        Raises:
            LayerError: the model keeps its decoder layers in no known place.
        """
        if self._capture.layers:
            self._capture.hook(decoder_layers(model))

    def follow_trainer(self, trainer: Any) -> None:
        """Record the completions that a trainer generates, in its loss pass."""
        self._unfollow_model()
        self.loss_pass = LossPass(trainer, self._capture, receiver=self)

    def follow_model(self, model: nn.Module, state: TrainerState) -> None:
        """Record the tokens that a model is asked to learn; they belong to no completion."""
        self._model_pass = ModelPass(
            model, self._capture, receiver=self, state=state, guard=self._guard
        )

    def unhook(self) -> None:
        """Let go of the model. Idempotent."""
        self._capture.unhook()
        self._unfollow_model()
        self.loss_pass = None

    def _unfollow_model(self) -> None:
        if self._model_pass is not None:
            self._model_pass.unhook()
        self._model_pass = None

    # -- what the passes deliver -------------------------------------------------------------------

    def pass_captured(self, captured: CapturedPass) -> None:
        """Hold the records of a pass until its step ends."""
        batch = PassRecords.of(captured, pool=self._pool, encoder=self._encoder)
        self.reporter.count(batch.records)
        self._tokens.update(dict.fromkeys(captured.latents, captured.tokens.count))
        self._hold(batch)

    def completions_trained(self, generation: Generation, ids: Tensor, *, step: int) -> None:
        """Hold completions that were trained on for the first time."""
        self._joined = True
        self._rewards.add(generation, ids)
        recall = self._options.recall
        self._hold(
            Deferred(
                stream="completions",
                make=partial(generation.describe, ids, step=step, recall=recall),
                records=len(ids),
                record_bytes=_COMPLETION_BYTES,
                step=step,
                pass_="loss",
            )
        )

    def _hold(self, batch: EventBatch) -> None:
        self._held.append(batch)
        if sum(b.size_bytes for b in self._held) > self._options.queue_bytes * _HELD_SHARE:
            self.spill()

    def spill(self) -> None:
        """Hand over everything that is held."""
        held, self._held = self._held, []
        for batch in held:
            self._recorder.emit(batch)

    # -- steps -------------------------------------------------------------------------------------

    def step_begin(self) -> None:
        """Start a step's account."""
        self._report_unlogged({})
        self.reporter.begin_step()

    def step_end(self, step: int, *, will_log: bool) -> None:
        """Close a step: hand over its records, and its report unless a log will complete it."""
        self._test_once()
        rewards, self._rewards = self._rewards, StepRewards()
        self._unlogged = self.reporter.end_step(
            step,
            rewards=rewards.summary(),
            health=self._capture.close_step(),
            statistics=self._recorder.statistics(),
        )
        # Last, since from here on the recorder's thread wants the interpreter for itself.
        if step % self._spill_every == 0:
            self.spill()
        if not will_log:
            self._report_unlogged({})

    def logged(self, step: int, logs: Mapping[str, Any]) -> None:
        """Complete the step's report with what the trainer logged for it."""
        if self._unlogged is not None and self._unlogged.step == step:
            self._report_unlogged(logs)

    def end(self) -> None:
        """Hand over what is left, and let go of the model."""
        self._report_unlogged({})
        self.spill()
        self.unhook()

    def _report_unlogged(self, logs: Mapping[str, Any]) -> None:
        report, self._unlogged = self._unlogged, None
        if report is not None and self._reports:
            for batch in report.batches(logs):
                self._recorder.emit(batch)

    def _test_once(self) -> None:
        """After the first step, tell every reader what is captured, and what is joined to it."""
        if self._tested:
            return
        self._tested = True
        tokens = {str(layer): self._tokens[layer] for layer in self._capture.layers}
        detail: dict[str, Any] = {
            "layer_calls": dict(self._capture.calls),
            "tokens_per_layer": tokens,
            "joined": list(_JOINED) if self._joined else [],
        }
        if not self._joined:
            detail["why"] = _UNREADABLE if self.loss_pass else _UNATTACHED
        self._recorder.note("self_test", detail)
        silent = [layer for layer, count in tokens.items() if not count]
        if silent:
            _logger.warning("The first step brought no token at layers %s", ", ".join(silent))
