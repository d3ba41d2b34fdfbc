"""Sweeps of the policy in training, between two of its steps."""

# ruff: noqa: ARG002 - transformers hands every event to a callback with all of these

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
from torch import nn
from transformers import TrainerCallback

from aegir_adapters.patching.borrowed import borrowed
from aegir_adapters.patching.failing import Failing
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.occasions import Occasions, TimeAccount
from aegir_adapters.patching.options import SweepOptions, sweep_fields
from aegir_adapters.patching.policy import policy_of
from aegir_adapters.patching.request import PatchSweepRequest, convert_request
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.sources import LatentDictionary
from aegir_adapters.patching.study import Study
from aegir_stream.errors import OptionError
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import MemorySink
from aegir_stream.typing import Clock

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["SweepCallback", "SweepingStatistics"]

_logger = logging.getLogger("aegir_stream")


class SweepingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a `SweepCallback` has done in the present or last training.

    Attributes:
        sweeps: sweeps that came to their end.
        failed: sweeps that did not.
        left_out: occasions that were left out to keep to `share`.
        elapsed_s: seconds for which the training stood still.
        last_error: why a sweep failed last, or why there are none at all.
    """

    sweeps: int = 0
    failed: int = 0
    left_out: int = 0
    elapsed_s: float = 0.0
    last_error: str | None = None


class SweepCallback(TrainerCallback):
    """Sweeps the policy while it is trained, so that one can watch a circuit form.

    For any transformers or TRL `Trainer`. Each sweep is a file of its own in the run directory,
    ``RUN/sweeps/NNNNN.jsonl``, with the step and the name of its study, and without a checkpoint::

        circuit = {
            "prompt": "41 0a 62 7a =>",
            "clean_prompt": "41 0a 20 7a =>",
            "answer": "SPACE",
            "foil": "LOWER",
            "hooks": ["resid_pre", "attn_out"],
            "metric": "recovered_logit_diff",
        }
        trainer.add_callback(SweepCallback({"circuit": circuit}, every_steps=20))

    The policy at step N is what N optimizer steps have made of it: it is swept when the step has
    ended, behind the optimizer and the schedule, ahead of what is logged and saved for the step
    and of the next step's batch and generation. `checkpoint-N` holds the same weights. The policy
    at step 0 is swept when training begins; where that goes on from a checkpoint, the policy at
    that checkpoint's step is.

    Training stands still meanwhile and is, bit for bit, what it is without this callback: weights,
    gradients, random numbers, modes, hooks and configuration (see `borrowed`). The policy computes
    in the type of its weights, without the trainer's autocast, and never compiled. Forward passes
    of a sweep are not recorded as the training's (`aegir_stream.aside`).

    Nothing that fails reaches the training loop: `Recorder.shield` keeps it, for each study by
    itself. The first failure of a study is logged, and each is counted by `statistics`. A sweep
    that breaks off says so in its file; of a study that cannot begin, the first file says why. What
    raises is the constructor.

    Of several ranks the first one sweeps, with the policy that it holds whole; the others go on
    until they next wait for it, at no barrier of ours. A sweep must be shorter than the process
    group's timeout (`ddp_timeout`). A policy that is split over the ranks (FSDP, ZeRO-3, tensor
    parallelism) is not swept, which is logged when training begins.

    Args:
        studies: what is swept at each occasion, by name: requests, or their fields, as ``POST
            /v1/patch_sweep`` or `PatchStudy` have them; all layers by default. Runs are captured
            for each sweep, since they change with the policy: give `clean_prompt`, not
            `source_run`.
        every_steps: sweep after every so many steps; `None` for none of these.
        steps: sweep after these steps as well.
        start: sweep before the first step, so that there is something to compare with.
        share: at most this share of the training's time so far goes to sweeps, such as 0.05; an
            occasion at which that would be exceeded is left out, and the log says so. As much as
            they take by default.
        output_dir: run directory; the trainer's `output_dir` if not given.
        tokenizer: reads prompts and answers; the trainer's if not given.
        saes: SAEs by the name that `latent` knows them by.
        limits: what one sweep may take.
        clock: where times come from.

    Raises:
        RequestError: a study has an unknown field, or one of the wrong type.
        OptionError: another option is out of range.
    """

    def __init__(
        self,
        studies: Mapping[str, PatchSweepRequest | Mapping[str, Any]],
        *,
        every_steps: int | None = 20,
        steps: Iterable[int] = (),
        start: bool = True,
        share: float | None = None,
        output_dir: str | Path | None = None,
        tokenizer: Any = None,
        saes: Mapping[str, LatentDictionary] | None = None,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not studies:
            raise OptionError(
                "Expected `studies` to hold one, got none",
                hint='Pass SweepCallback({"circuit": {"prompt": ..., "answer": ...}})',
            )
        self._requests = {name: _request(fields) for name, fields in studies.items()}
        self._occasions = Occasions(every_steps=every_steps, steps=frozenset(steps), start=start)
        self._share, self._clock = share, clock
        self._output_dir, self._tokenizer = output_dir, tokenizer
        self._saes, self._limits = saes, limits
        self._time = TimeAccount(share, clock=clock)
        self._shield: Recorder | None = None
        self._studies: list[Study] = []
        self._model: PatchableModel | None = None
        self._left_out = 0

    def statistics(self) -> SweepingStatistics:
        """Return what was swept, left out and failed in the present or last training."""
        shields = [self._shield, *(study.shield for study in self._studies)]
        errors = [shield.statistics().last_error for shield in shields if shield is not None]
        return SweepingStatistics(
            sweeps=sum(study.sweeps for study in self._studies),
            failed=sum(study.shield.statistics().errors for study in self._studies),
            left_out=self._left_out,
            elapsed_s=self._time.spent_s,
            last_error=next((error for error in reversed(errors) if error), None),
        )

    # -- the trainer's events ----------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the policy, and sweep it as it is before the first step."""
        self._end()
        if not state.is_world_process_zero:
            return
        self._shield = Recorder(MemorySink())
        run = RunDirectory.at(self._output_dir or str(args.output_dir))
        self._studies = [Study(name, asked, run) for name, asked in self._requests.items()]
        self._time = TimeAccount(self._share, clock=self._clock)
        self._left_out = 0
        with self._time.charged():
            self._model = self._shield.shield(self._opened, args, **kwargs)
        if self._occasions.start:
            self._sweep(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sweep the policy, if it is time to."""
        if self._model is not None and self._occasions.after(state.global_step):
            if self._time.affords_another():
                self._sweep(state.global_step)
            else:
                self._leave_out(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the policy."""
        self._end()

    # -- sweeps ------------------------------------------------------------------------------------

    def _opened(
        self, args: TrainingArguments, *, model: nn.Module, **kwargs: Any
    ) -> PatchableModel:
        """Return the policy, taken apart; its weights may change afterwards."""
        processing: Any = self._tokenizer or kwargs.get("processing_class")
        # What reads images as well has a tokenizer for the text.
        tokenizer = getattr(processing, "tokenizer", processing)
        with Failing("To take the policy apart"):
            policy = policy_of(model, args)
            with borrowed(policy):
                return PatchableModel(policy, tokenizer)

    def _sweep(self, step: int) -> None:
        model = self._model
        if model is None:
            return
        with self._time.charged():
            for study in self._studies:
                # A new service each time: it has no runs of a policy that is no more.
                service = PatchService(model, saes=self._saes, limits=self._limits)
                study.shield.shield(study.sweep, service, step=step)

    def _leave_out(self, step: int) -> None:
        self._left_out += 1
        if self._left_out == 1:
            _logger.warning(
                "Sweeps have taken %.1f s, and another would exceed share=%s of the training's "
                "time: left out after step %d, and from here on wherever that holds",
                self._time.spent_s,
                self._share,
                step,
            )

    def _end(self) -> None:
        self._model = None
        for shield in [self._shield, *(study.shield for study in self._studies)]:
            if shield is not None:
                shield.close()


def _request(fields: PatchSweepRequest | Mapping[str, Any]) -> PatchSweepRequest:
    if isinstance(fields, PatchSweepRequest):
        return fields
    options = cast("SweepOptions", {"layers": "all", **fields})
    return convert_request(sweep_fields(None, None, options), PatchSweepRequest)
