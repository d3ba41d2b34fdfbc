"""One call of `Trainer.train`: from its first step to its last, all on the training thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from aegir_adapters.trainer.capture import Capture
from aegir_adapters.trainer.columns import ColumnPool
from aegir_adapters.trainer.deferred import Deferred
from aegir_adapters.trainer.generation import StepRewards
from aegir_adapters.trainer.layers import decoder_layers
from aegir_adapters.trainer.loss_pass import LossPass
from aegir_adapters.trainer.model_pass import ModelPass
from aegir_adapters.trainer.obstacles import UNATTACHED, UNLABELLED, obstacle
from aegir_adapters.trainer.pass_account import PassAccount
from aegir_adapters.trainer.records import PassRecords
from aegir_adapters.trainer.report import StepReporter
from aegir_adapters.trainer.rows import RowEncoder
from aegir_adapters.trainer.self_test import SelfTest
from aegir_stream.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from transformers import TrainerState

    from aegir_adapters.trainer.attachment import LossListener
    from aegir_adapters.trainer.autoencoder import SparseAutoencoder
    from aegir_adapters.trainer.capture import CapturedPass
    from aegir_adapters.trainer.generation import Generation
    from aegir_adapters.trainer.recording import Recording
    from aegir_adapters.trainer.report import StepReport
    from aegir_stream.events import PassName
    from aegir_stream.typing import EventBatch

__all__ = ["Attempt"]

_COMPLETION_BYTES = 4096
"""Memory that a completion's token ids, text and rewards hold while queued, generously."""

_HELD_SHARE = 0.5
"""How much of the queue's bound may be held back for a later spill."""

_CUT = "What is read while the trainer generates is held until it has; queue_bytes bounds that too"


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
        self.last_step: int | None = None
        self._recording = recording
        self._recorder = recording.recorder
        self._options = options
        self._reports = recording.rank == 0
        self._spill_every = max(1, recording.run.cfg.sae_live_spill_every_n_steps)
        self._guard = guard
        self._capture = Capture(
            saes,
            top_k=options.top_k,
            guard=guard,
            sampler=recording.sampler,
            references=recording.references,
        )
        self._model_pass: ModelPass | None = None
        self._pool = ColumnPool()
        self._encoder = RowEncoder(options.precision)
        self._held: list[EventBatch] = []
        self._rewards = StepRewards()
        self._unlogged: StepReport | None = None
        self._passes = PassAccount(options.passes)
        self._self_test = SelfTest(recording.sampling)

    # -- whom to follow ----------------------------------------------------------------------------

    def hook(self, model: nn.Module) -> None:
        """Register the hooks on the model's decoder layers.

        Raises:
            LayerError: the model keeps its decoder layers in no known place.
        """
        if self._capture.layers:
            self._capture.hook(decoder_layers(model))

    def follow_trainer(self, trainer: Any) -> None:
        """Record the completions that a trainer generates, in the passes that are asked for."""
        self._unfollow_model()
        self.loss_pass = LossPass(
            trainer,
            self._capture,
            receiver=self,
            passes=self._passes.asked,
            iterations=self._options.iterations,
            held_bytes=int(self._options.queue_bytes * _HELD_SHARE),
        )
        for name in self._passes.asked:
            self._passes.explain(name, obstacle(trainer, name))
        if "reference" in self._passes.asked:
            self._hook_reference(getattr(trainer, "ref_model", None))

    def _hook_reference(self, model: nn.Module | None) -> None:
        """Register the hooks on a reference model; where there is none, it is the policy itself."""
        if model is None:
            return
        try:
            self.hook(model)
        except LayerError as error:
            self._passes.explain("reference", str(error))

    def follow_model(self, model: nn.Module, state: TrainerState) -> None:
        """Record the tokens that a model is asked to learn; they belong to no completion."""
        for name in self._passes.asked:
            self._passes.explain(name, UNATTACHED)
        if "loss" in self._passes.asked:
            self._model_pass = ModelPass(
                model, self._capture, receiver=self, state=state, guard=self._guard
            )

    @property
    def listener(self) -> LossListener | None:
        """Who is told what the trainer does."""
        return self.loss_pass or self._model_pass

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
        self._self_test.count(captured)
        self._passes.count(captured)
        self._hold(batch)

    def pass_cut(self, name: PassName, tokens: int, *, step: int) -> None:
        """Tell every reader that a pass does not have all tokens of a step."""
        self._passes.cut(name, _CUT)
        self._recorder.note("pass_cut", {"pass": name, "step": step, "tokens": tokens, "why": _CUT})

    def completions_trained(
        self, generation: Generation, ids: Tensor, *, step: int, iteration: int = 0
    ) -> None:
        """Hold completions that were trained on; those of a first time earn the step's rewards."""
        self._self_test.joined = True
        if iteration == 0:
            self._rewards.add(generation, ids)
        self._describe(generation, ids, step=step, iteration=iteration)

    def completions_seen(
        self, generation: Generation, ids: Tensor, *, step: int, pass_: PassName
    ) -> None:
        """Hold completions that a step has records of, but did not train on."""
        self._describe(generation, ids, step=step, pass_=pass_)

    def _describe(
        self,
        generation: Generation,
        ids: Tensor,
        *,
        step: int,
        iteration: int = 0,
        pass_: PassName | None = None,
    ) -> None:
        make = partial(
            generation.describe,
            ids,
            step=step,
            recall=self._options.recall,
            iteration=iteration,
            pass_=pass_,
        )
        self._hold(
            Deferred(
                stream="completions",
                make=make,
                records=len(ids),
                record_bytes=_COMPLETION_BYTES,
                step=step,
                pass_=pass_ or "loss",
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
        self.last_step = step
        if self.loss_pass is not None:
            self.loss_pass.step_end()
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

    def seal(self, step: int) -> None:
        """Hand over everything, as the records of a checkpoint that was saved."""
        self.spill()
        self._recording.seal(step, references=self._capture.references())

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
        if self._model_pass is not None and self._model_pass.unlabelled:
            self._passes.cut("loss", UNLABELLED)
        detail = self._self_test.tell_once(
            layers=self._capture.layers,
            calls=self._capture.calls,
            attached=self.loss_pass is not None,
            passes=self._passes.tallies(),
            heard=self._capture.heard,
        )
        if detail is not None:
            self._recorder.note("self_test", detail)
